"""Codes of problems with data sets, images, tokenizers and chat templates."""

from lmmkit.errors import Code

# fmt: off

ROOT = " Relative paths in a recipe start at the folder that `--root` names."

# chat/

CHAT_AFTER_EOS = Code(
    "chat/after-eos", cause="The value of `after_eos` is unknown.",
    expected="one of {known}", hint="Name one of these.",
)
CHAT_CONTROL = Code(
    "chat/control-tokens", cause="The tokenizer lacks control tokens of the chat template.",
    expected="all control tokens of the template",
    hint="Use one of the templates {usable}, or another tokenizer.",
)
CHAT_IMAGES = Code(
    "chat/images", cause="The number of images of a sample differs from the sum of `Turn.images` over its turns, or "
    "an image has a place outside its text.",
    expected="each image counted once, in user turns only, and one place for each image or none",
    hint="Correct `Turn.images` or `Turn.places`.",
)
CHAT_MARKERS = Code(
    "chat/image-markers", cause="The `<image>` markers of a prompt do not match its images.",
    expected="one <image> for each image of the prompt, or no marker",
    hint="Remove markers, or give as many images (`lmmkit chat ... --image FILE`).",
)
CHAT_NO_VISION = Code(
    "chat/no-vision", cause="A sample with an image is given to a text-only model.",
    expected="a model with a vision encoder",
    hint="Remove the image, or use a model with a vision encoder.",
)
PROMPT = Code(
    "chat/prompt", cause="A prompt for generation does not end with the user's turn.",
    expected="the user's turn last", hint="Remove the assistant's turn that the model should generate.",
)
ROLES = Code(
    "chat/roles", cause="The turns of a sample do not alternate between user and assistant.",
    expected="user and assistant in alternation, the user first", hint="Correct the conversation.",
)
TEMPLATE = Code(
    "chat/unknown-template", cause="A sample names a chat template that does not exist.",
    expected="one of {known}", hint="{nearest}",
)

# data/

CONVERT_ANNOTATIONS = Code(
    "data/convert-annotations", cause="`--annotations` is missing for a VQA data set, or is given for another one.",
    expected="`lmmkit data convert SRC DST --annotations FILE` for a VQA data set, and for no other",
    hint="Add or remove the option, or correct the form: `lmmkit data convert SRC DST --from FORM`.",
)
CONVERT_COLUMN = Code(
    "data/convert-column", cause="`--column` of `lmmkit data convert` has no name of a column, or two for a part.",
    expected="PART=NAME, where PART is messages, images, system or id, each once",
    hint="Such as `lmmkit data convert SRC DST --column messages=dialogue`.",
)
CONVERT_IMAGES = Code(
    "data/convert-images", cause="`--refer-images` is not possible: the images of the new data set are no files.",
    expected="images that are files, and a form whose records name them",
    hint="Leave out the option: `lmmkit data convert SRC DST` copies the images.",
)
CONVERT_NOT_EMPTY = Code(
    "data/convert-not-empty",
    cause="The folder that `lmmkit data convert` would write is not empty, or is a file, a link or the current folder.",
    expected="a new or empty folder", hint="Name another folder, or remove this one first.",
)
CONVERT_UNUSED = Code(
    "data/convert-unused", cause="An option of `lmmkit data convert` has no meaning for a data set of this kind.",
    expected="{expected}",
    hint="Leave the option out, or name another form: `lmmkit data convert SRC DST --from FORM`.",
)
NO_RECORD = Code(
    "data/no-record", cause="The source has no record of this number.",
    expected="a number from 0 to {last}", hint="Name a record in this range.",
)
NO_STAGE = Code(
    "data/unknown-stage", cause="`--stage` names a stage that the recipe does not have.",
    expected="a stage of the recipe", hint="{nearest}",
)
NOT_TRAINED = Code(
    "data/not-trained",
    cause="`lmmkit data show --html` shows samples as a stage trains on them, and it does not train on this source.",
    expected="one of {known}, with a stage that trains on it",
    hint="Name another source or stage; without a source, the page has the first samples of the stage.",
)
NEEDS_HTML = Code(
    "data/needs-html", cause="`--stage` was given to `lmmkit data show` without `--html`, which alone shows a stage.",
    expected="`lmmkit data show RECIPE --html FILE --stage STAGE`", hint="Name the file of the page, or no stage.",
)
NO_SOURCE = Code(
    "data/unknown-source", cause="The recipe has no data source of this name.",
    expected="a source of the recipe", hint="{nearest}",
)
SAMPLE_TOO_LONG = Code(
    "data/too-long", cause="The sequence of a sample is longer than the context of the model.",
    expected="at most model.text.context = {context}",
    hint="Raise the context, shorten the record, or set `batch.too_long` to `truncate` or `drop`.",
)
STEP_REFUSED = Code(
    "data/step-refused",
    cause="The system refused memory, shared memory or an open file while the data of a step was made.",
    expected="the data of a step",
    hint="Read the reason: free memory or room in /dev/shm, or allow more open files (`ulimit -n`). Lower "
    "`speed.workers` or `speed.image_cache_mb` if needed. Then resume.",
)
WORKER_DIED = Code(
    "data/worker-died", cause="A data worker process ended before it delivered the data of its step.",
    expected="the data of a step from a data worker",
    hint="SIGKILL usually means too little memory, SIGBUS a full /dev/shm: lower `speed.workers` or "
    "`speed.image_cache_mb`, then resume.",
)
WORKER_HUNG = Code(
    "data/worker-hung", cause="A data worker process did not deliver the data of its step in time.",
    expected="the data of a step from a data worker",
    hint="Check whether the file system hangs. If it is slow, lower `speed.workers`. Then resume.",
)

# image/

BAD_FILE = "Replace the file, or name another one; in data, its record can be removed."

IMAGE_DAMAGED = Code(
    "image/damaged", cause="An image file is damaged or incomplete.",
    expected="a complete image file", hint=BAD_FILE,
)
IMAGE_FILE = Code(
    "image/file", cause="An image file is missing, is not a regular file or cannot be read.",
    expected="a regular file that can be read", hint=BAD_FILE,
)
IMAGE_FORMAT = Code(
    "image/format", cause="An image file has a format that is not supported.",
    expected="an image in {formats}", hint=BAD_FILE,
)
IMAGE_NARROW = Code(
    "image/narrow", cause="An image that is cut into tiles is so narrow that no row of the decoder shows it.",
    expected="at least about one patch wide and high on its tiles, or one square of a connector that joins patches",
    hint=BAD_FILE,
)
IMAGE_SHAPE = Code(
    "image/aspect-ratio", cause="An image is too long and narrow.",
    expected="sides of at most {ratio} : 1", hint=BAD_FILE,
)
IMAGE_TOO_LARGE = Code(
    "image/too-large", cause="An image has too many pixels, or its file has too many bytes.",
    expected="at most {most}", hint=BAD_FILE,
)

# records/

ANSWER = Code(
    "records/no-answer", cause="A question has no answer, or an empty one.",
    expected="an answer that is not empty", hint="Add the answer, or remove the question.",
)
RECORDS_CHANGED = Code(
    "records/changed", cause="A records file, a shard or its index changed while a run was reading it.",
    expected="the file as the run opened it",
    hint="Leave data and index cache unchanged while a run uses them. Resume the run.",
)
RECORDS_EMPTY = Code(
    "records/empty", cause="A data source has no usable record.",
    expected="at least one record", hint="Correct `records`.",
)
RECORDS_FILE = Code(
    "records/file", cause="A file of records cannot be read, or has the wrong encoding.",
    expected="{expected}", hint="Correct `records`, or replace the file." + ROOT,
)
RECORDS_UNREAD = Code(
    "records/unread",
    cause="A file of records cannot be read from a place on; `bad_records: skip` would leave out all that follows.",
    expected="a file that can be read to its end",
    hint="Repair the file there, or download it again if it ends too early. JSONL is read on after a broken line.",
)
FROM = Code(
    "records/from", cause="The speaker of a turn, `from`, is neither `human` nor `gpt`.",
    expected="`human` or `gpt`", hint="Correct `from`.",
)
IMAGE_KEYS = Code(
    "records/image-keys", cause="A record names different images in `image` and in `images`.",
    expected="one of the two keys", hint="Remove one of them.",
)
IMAGE_MISSING = Code(
    "records/missing-image", cause="An image that a record names does not exist or is not a regular file.",
    expected="an image file", hint="Restore the file, or correct `images` or the record." + ROOT,
)
RECORDS_IMAGES = Code(
    "records/no-image-folder", cause="The image folder of a source does not exist, or is missing from the recipe.",
    expected="a folder of images", hint="Add or correct `images`." + ROOT,
)
JSON = Code(
    "records/json", cause="A record is not valid JSON.",
    expected="{expected}", hint="Correct the record.",
)
LONG = Code(
    "records/too-long", cause="A record is too long.",
    expected="at most {most}", hint="Split the conversation into several records.",
)
DATA_ADDRESS = Code(
    "records/data-address", cause="A `data:` address in a record of kind `messages` is no image in base64.",
    expected="`data:image/TYPE;base64,` and the base64 of an image file, of at most 160 million bytes",
    hint="Correct or remove the record, or name the image by a path below `images`.",
)
MESSAGE_COLUMN = Code(
    "records/columns", cause="A record of kind `messages` has no column of messages, or two columns for one thing.",
    expected="{expected}", hint="Name the column in the source's `columns`, or correct the record.",
)
MESSAGE_PART = Code(
    "records/content-part", cause="A content part of a message is neither a text nor an image.",
    expected='{{"type": "text", "text": ...}} or {{"type": "image", "image": PATH}}',
    hint="Correct or remove the part.",
)
MESSAGE_ROLE = Code(
    "records/role", cause="The role of a message is unknown.",
    expected="`system`, `user` or `assistant` (`human` or `gpt`)", hint="Correct the role, or remove the record.",
)
MORE_PROBLEMS = Code(
    "records/more-problems", cause="A source has more problems than the message lists.",
    expected="at most {most} bad records or images",
    hint="Correct the data. `lmmkit data check` lists every problem.",
)
MARKERS = Code(
    "records/image-markers", cause="The `<image>` markers of a record do not match its images.",
    expected="one <image> for each image, in questions only", hint="Add or remove markers.",
)
MEDIA = Code(
    "records/video-or-audio", cause="A record has a video or a sound, and lmmkit reads images only.",
    expected="images and text", hint="Remove the record, or write frames of the video as `images`.",
)
NO_WEBDATASET = Code(
    "records/no-webdataset", cause="A package that is needed to read WebDataset shards is not installed.",
    expected="the packages of the extra `webdataset`", hint='Run `pip install "lmmkit[webdataset]"`.',
)
ORDER = Code(
    "records/turn-order", cause="The turns of a record do not alternate between questions and answers.",
    expected="questions and answers in alternation", hint="Join or split the turns.",
)
OFFICIAL_ENTRY = Code(
    "records/official-entry", cause="An entry of a COCO or VQA file has no usable id, or does not fit the other entry "
    "of its record.", expected="{expected}", hint="Correct or remove the entry, or use the files of one version.",
)
OFFICIAL_FILE = Code(
    "records/official-file", cause="A file of a source of kind `coco` or `vqa` is no file of captions, of questions or "
    "of annotations.", expected="{expected}",
    hint="Name COCO's file of captions, or VQA's files of questions and annotations. Write other data as records of "
    "kind `messages` or `llava`.",
)
OTHER_FORM = Code(
    "records/other-form", cause="A record has another form than LLaVA's.",
    expected="`conversations`, a list of turns with `from` and `value`",
    hint="Set the source's `kind` to `messages` if the records have `role` and `content`.",
)
QUESTION = Code(
    "records/no-question", cause="A question is empty. LLaVA learns nothing from such a record.",
    expected="a question with text or an image", hint="Add the question, or remove the record.",
)
RECORDS_PATH = Code(
    "records/image-path", cause="A record names an image by a path that leads out of the image folder.",
    expected="a file below `images`", hint="Write the path relative to `images`.",
)
RECORDS_PLAIN = Code(
    "records/plain", cause="A record of a `plain` source is not an image with one caption.",
    expected="two turns, at least one image and no system prompt for the template `plain`",
    hint="Correct the record, or use the template `vicuna_v1`.",
)
RECORDS_SHARD = Code(
    "records/shard", cause="A WebDataset shard is damaged or incomplete.",
    expected="{expected}", hint="Write the shard again.",
)
SYSTEM = Code(
    "records/system", cause="A record has two different system prompts, or one after its first turn.",
    expected="one system prompt, as the key `system` or as the first turn", hint="Correct the record.",
)
NO_PYARROW = Code(
    "records/no-pyarrow", cause="pyarrow, which reads parquet and Arrow files, is not installed.",
    expected="the package of the extra `parquet`", hint='Run `pip install "lmmkit[parquet]"`.',
)
TABLE_COLUMNS = Code(
    "records/table-columns", cause="The columns of a parquet or Arrow file cannot be read, or differ from those of the "
    "first file of its source.", expected="{expected}",
    hint="Correct the source's `columns`, or write the file again.",
)
TABLE_FILE = Code(
    "records/table", cause="A parquet or Arrow file is damaged or incomplete.",
    expected="{expected}", hint="Write the file again, or correct `records`.",
)
TABLE_TEXT = Code(
    "records/table-text", cause="A text in a parquet or Arrow file is not valid UTF-8.",
    expected="text in UTF-8", hint="Correct or remove the record.",
)
TABLE_VALUE = Code(
    "records/table-value",
    cause="A record of a parquet or Arrow file has a value that Python lacks, such as a date after the year 9999.",
    expected="texts, numbers, and dates and time zones that Python knows",
    hint="Correct or remove the record or the field.",
)
TEXT = Code(
    "records/surrogate", cause="A record contains half of a surrogate pair, which UTF-8 cannot encode.",
    expected="characters that UTF-8 can encode", hint="Remove it from the record.",
)
TOO_MANY = Code(
    "records/too-many-bad", cause="A source has more bad records or images than it may skip.",
    expected="at most {most}",
    hint="Correct the data (`lmmkit data check` lists every problem), or set `bad_records: skip` and a higher "
    "`bad_share`. Then a run that has begun can be resumed.",
)
TURN_WEIGHT = Code(
    "records/turn-weight", cause="The weight of a turn is neither 0 nor 1.",
    expected="`weight`, `loss` or `train` of 0 or 1 (false or true)",
    hint="Correct the record; other weights are not supported.",
)
RECORDS_TURNS = Code(
    "records/no-conversation", cause="A record has no usable conversation.",
    expected="a list of turns with a question and an answer", hint="Correct or remove the record.",
)
TYPE = Code(
    "records/wrong-type", cause="A value of a record has the wrong JSON type.",
    expected="{expected}", hint="Correct the record.",
)

# sampler/

EMPTY_SOURCE = Code(
    "sampler/empty-source", cause="A data source that has a weight has no records.",
    expected="at least one record", hint="Add records to the source, or remove its weight.",
)
SOURCE = Code(
    "sampler/unknown-source", cause="A weight names a data source that does not exist.",
    expected="a source under `data`", hint="{nearest}",
)
WEIGHT = Code(
    "sampler/weights", cause="The weights of the data sources are negative, not finite, or all 0.",
    expected="finite weights of 0 or more, at least one of them above 0", hint="Correct the weights.",
)

# tokenizer/

TOKENIZER_CONTROL = Code(
    "tokenizer/control-tokens", cause="A tokenizer has no token that begins or ends a sequence.",
    expected="{expected}",
    hint="Add `eos_token` to tokenizer_config.json, or train the sentencepiece model with bos and eos.",
)
TOKENIZER_DAMAGED = Code(
    "tokenizer/damaged", cause="A tokenizer file is damaged.",
    expected="{expected}", hint="Copy the file again.",
)
TOKENIZER_DISAGREE = Code(
    "tokenizer/disagree",
    cause="Files of one folder give one id to two tokens, or two ids to one token, or each has tokens of its own.",
    expected="files that agree on the vocabulary",
    hint="Remove the file that does not belong to the model, or let a recipe read one file alone: "
    "`model.tokenizer.kind: sentencepiece` or `tokenizers`.",
)
TOKENIZER_FILE = Code(
    "tokenizer/file", cause="A tokenizer file is missing, empty, too large or cannot be read.",
    expected="a tokenizer file of at most {most} MB",
    hint="Correct the path of the tokenizer, or copy the file again." + ROOT,
)
TOKENIZER_KIND = Code(
    "tokenizer/unknown-kind", cause="lmmkit has no tokenizer of this kind.",
    expected="one of {known}", hint="{nearest}",
)
TOKENIZER_REGEX = Code(
    "tokenizer/regex", cause="A regular expression of the tokenizer fails on a text.",
    expected="an expression that works on every text",
    hint="Use the tokenizer that its authors published.",
)
SURROGATE = Code(
    "tokenizer/surrogate", cause="A text contains half of a surrogate pair, which UTF-8 cannot encode.",
    expected="characters that UTF-8 can encode", hint="Remove it from the data.",
)
TIKTOKEN = Code(
    "tokenizer/tiktoken", cause="A tiktoken file is damaged.",
    expected="{expected}", hint="Copy the file again.",
)
