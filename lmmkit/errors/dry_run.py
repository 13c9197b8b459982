"""Codes of faults of plugins that the dry run finds."""

from lmmkit.errors import Code

# fmt: off

DETACHED = Code(
    "plugin/detached", cause="The value of a term has no gradient: it was detached, or computed without gradient.",
    expected="a value computed from the needs, or by the module, without `detach`, `item` or `no_grad`",
    hint="Return the sum itself, as torch computes it.",
)
EDIT = Code(
    "plugin/edit", cause="The edit of an image changes its input, is not a pure function, or cannot be compared.",
    expected="a frozen dataclass that returns new, finite pixels, the same in each call",
    hint="Write the edit as a frozen dataclass whose `__call__` changes nothing in place.",
)
EDIT_SIZE = Code(
    "plugin/edit-size",
    cause="The edit of an image does something else to an image of another size, as a teacher reads it.",
    expected="an edit that changes the same part of an image at every size",
    hint="Let the edit count in shares of the side, or read teacher `{teacher}` of other views.",
)
IN_PLACE = Code(
    "plugin/in-place", cause="A method of a plugin changes what it is given.",
    expected="{expected}", hint="Make a new object: the given one is used elsewhere too.",
)
LOST_VALUE = Code(
    "plugin/lost-value",
    cause="A value that `modules` sets is lost: a run builds modules without memory, then calls `reset_parameters`.",
    expected="every value set in `reset_parameters`",
    hint="Write a module with its own `reset_parameters`, and set the value there.",
)
NO_GRADIENT = Code(
    "plugin/no-gradient", cause="Parameters of a plugin's module get no gradient from its term.",
    expected="a gradient for every parameter of the module",
    hint="Use the parameters in `value`, remove them, or set their `requires_grad` to False.",
)
NO_ITEMS = Code(
    "plugin/no-items", cause="A term has no items in the first samples of a stage.",
    expected="at least one item", hint="Compare `needs` and `views` with `lmmkit plugins trace RECIPE`.",
)
NO_VIEWS = Code(
    "plugin/no-views", cause="A task makes no view of the first samples of a stage.",
    expected="at least one view",
    hint="Correct `views` of the plugin, or use the task in another stage. If it reads keys of your records, "
    "test it with a recipe: lmmkit plugins test RECIPE.",
)
NOT_ADDITIVE = Code(
    "plugin/not-additive",
    cause="What a plugin counts or sums depends on how a step is cut into micro-batches.",
    expected="a SUM over items: two micro-batches together have the sum of both",
    hint="Return a sum, not a mean, and let no item depend on another one of the micro-batch. If items are compared, "
    "write a `StepTerm`, or set `additive = False`.",
)
NOT_FINITE = Code(
    "plugin/not-finite", cause="A plugin computes a value, a gradient or an initial value that is NaN or infinite.",
    expected="finite numbers", hint="Look for logarithms, roots, divisions and exponentials of values without limits.",
)
NOT_PURE = Code(
    "plugin/not-pure", cause="A method of a plugin gives different results for the same arguments.",
    expected="{expected}",
    hint="Use no global random generator, clock, `hash()`, order of a set, or state that is kept between calls.",
)
PICKLE = Code(
    "plugin/pickle", cause="A task cannot be sent to another process, such as a data worker.",
    expected="a component, and samples, that `pickle` accepts",
    hint="Define the class at the top level of its file, with settings of plain types.",
)
UNINITIALISED = Code(
    "plugin/uninitialised", cause="A parameter or buffer of a plugin's module has no certain initial value.",
    expected="`reset_parameters` in every module with parameters or buffers, which fills all of them",
    hint="Fill it in `reset_parameters`, from torch's generator: modules are built without memory.",
)
UNUSED = Code(
    "plugin/unused-method", cause="A component has a method or a class attribute that nothing calls.",
    expected="{expected}", hint="Correct the name or remove it. A helper that your own code calls may have any name.",
)
INNER_IMPORT = Code(
    "plugin/inner-import", cause="The file of a plugin imports from the inside of lmmkit.",
    expected="{expected}", hint="Take the name from `lmmkit.api`, or write what you need in the plugin.",
)
WRONG_DEVICE = Code(
    "plugin/device", cause="A plugin works on a CPU only: it uses tensors of the host with those of the device.",
    expected="each tensor on the device of the needs",
    hint="Make tensors there (`device=x.device`, `x.new_zeros`), or move them (`.to(x.device)`). Draw with `ctx.rng`"
    " on the CPU, then move.",
)
WEIGHTS = Code(
    "plugin/weights", cause="A plugin gives rows of the next-token loss a weight that is negative or not finite.",
    expected="a finite weight of 0 or more for each row",
    hint="Limit the weights in `weigh`, with `clamp` for example.",
)
UNREGISTERED = Code(
    "plugin/unregistered", cause="A module of a plugin has tensors or layers that torch does not find.",
    expected="parameters, buffers and submodules",
    hint="Use `nn.ModuleList`, `nn.ModuleDict`, `nn.Parameter` or `register_buffer`.",
)
