"""Names that scripts import from transformers 2 to 4 and datasets 1 to 2, and that the libraries have no more.

RENAMED   the same thing has another name today: it is handed through, with one line of notice
DROPPED   what to use instead
the rest  by rule: TensorFlow and Flax classes, feature extractors of images, whole families of models

Imports nothing.
"""

from __future__ import annotations

from collections.abc import Container

__all__ = ["DROPPED", "RENAMED", "advice", "new_name"]

RENAMED = {
    "AutoModelForVision2Seq": "AutoModelForImageTextToText",
    "EvaluationStrategy": "IntervalStrategy",
    "MT5Tokenizer": "T5Tokenizer",
    "MT5TokenizerFast": "T5Tokenizer",
    "MODEL_FOR_VISION_2_SEQ_MAPPING": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "set_progress_bar_enabled": "enable_progress_bars",
}

_OTHER_LOOP = "It runs another training loop than headstart's, so it is not handed through. "
_LOAD_DATA = "Use load_dataset(...) and tokenize with its map(), as transformers' own examples do today."
_EVALUATE = "Use headstart.evaluate.load(...)."
_TEXT_TO_TEXT = "The pipeline is gone; load AutoModelForSeq2SeqLM and call its generate()."
_NO_TENSORFLOW = "transformers 5 has PyTorch models only. "

DROPPED = {
    "Seq2SeqTrainer": _OTHER_LOOP + "Use Trainer; or, knowingly, `from transformers import Seq2SeqTrainer`.",
    "Seq2SeqTrainingArguments": _OTHER_LOOP
    + "Use TrainingArguments; or, knowingly, `from transformers import Seq2SeqTrainingArguments`.",
    "AutoModelWithLMHead": "Use AutoModelForCausalLM (GPT-2 and its kin), AutoModelForMaskedLM (BERT) or "
    "AutoModelForSeq2SeqLM (T5, BART).",
    "MODEL_WITH_LM_HEAD_MAPPING": "Use MODEL_FOR_CAUSAL_LM_MAPPING or MODEL_FOR_MASKED_LM_MAPPING.",
    "DataCollatorForWholeWordMask": "Use DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True).",
    "DataCollatorForSOP": "Use DataCollatorForLanguageModeling; order the sentences yourself.",
    "InputExample": _LOAD_DATA,
    "InputFeatures": _LOAD_DATA,
    "DataProcessor": _LOAD_DATA,
    "SingleSentenceClassificationProcessor": _LOAD_DATA,
    "GlueDataset": _LOAD_DATA,
    "GlueDataTrainingArguments": _LOAD_DATA,
    "SquadDataset": _LOAD_DATA,
    "SquadDataTrainingArguments": _LOAD_DATA,
    "SquadExample": _LOAD_DATA,
    "SquadFeatures": _LOAD_DATA,
    "SquadV1Processor": _LOAD_DATA,
    "SquadV2Processor": _LOAD_DATA,
    "TextDataset": _LOAD_DATA,
    "TextDatasetForNextSentencePrediction": _LOAD_DATA,
    "LineByLineTextDataset": 'Use load_dataset("text", data_files=...) and tokenize with its map().',
    "LineByLineWithRefDataset": _LOAD_DATA,
    "LineByLineWithSOPTextDataset": _LOAD_DATA,
    "glue_processors": _LOAD_DATA,
    "glue_output_modes": _LOAD_DATA,
    "glue_tasks_num_labels": _LOAD_DATA,
    "glue_convert_examples_to_features": _LOAD_DATA,
    "squad_convert_examples_to_features": _LOAD_DATA,
    "xnli_processors": _LOAD_DATA,
    "xnli_output_modes": _LOAD_DATA,
    "xnli_tasks_num_labels": _LOAD_DATA,
    "glue_compute_metrics": 'Use headstart.evaluate.load("glue", ...).',
    "xnli_compute_metrics": 'Use headstart.evaluate.load("accuracy").',
    "SpecialTokensMixin": "Use PreTrainedTokenizerBase, which has its methods.",
    "ModelCard": "Use huggingface_hub.ModelCard.",
    "cached_path": "Use huggingface_hub.hf_hub_download(...).",
    "TRANSFORMERS_CACHE": "Use huggingface_hub.constants.HF_HUB_CACHE, or set HF_HOME.",
    "PYTORCH_TRANSFORMERS_CACHE": "Use huggingface_hub.constants.HF_HUB_CACHE, or set HF_HOME.",
    "PYTORCH_PRETRAINED_BERT_CACHE": "Use huggingface_hub.constants.HF_HUB_CACHE, or set HF_HOME.",
    "QuestionAnsweringPipeline": "The pipeline is gone; load AutoModelForQuestionAnswering and search its logits.",
    "VisualQuestionAnsweringPipeline": "The pipeline is gone; use AutoModelForVisualQuestionAnswering.",
    "SummarizationPipeline": _TEXT_TO_TEXT,
    "Text2TextGenerationPipeline": _TEXT_TO_TEXT,
    "TranslationPipeline": _TEXT_TO_TEXT,
    "ImageToTextPipeline": "Use ImageTextToTextPipeline.",
    "Conversation": 'Give pipeline("text-generation") a list of messages.',
    "ConversationalPipeline": 'Give pipeline("text-generation") a list of messages.',
    "BeamScorer": "Use the model's generate(num_beams=...).",
    "BeamSearchScorer": "Use the model's generate(num_beams=...).",
    "ConstrainedBeamSearchScorer": "Use the model's generate(num_beams=...).",
    "LogitsWarper": "Use LogitsProcessor.",
    "top_k_top_p_filtering": "Use TopKLogitsWarper and TopPLogitsWarper.",
    "PushToHubCallback": "Use the model's push_to_hub() after training.",
    "PyTorchBenchmark": "Measure with torch.utils.benchmark.",
    "PyTorchBenchmarkArguments": "Measure with torch.utils.benchmark.",
    "Wav2Vec2Tokenizer": "Use Wav2Vec2CTCTokenizer.",
    "send_example_telemetry": "transformers sends none any more: leave the line out.",
    "prune_layer": "Use torch.nn.utils.prune.",
    "is_tf_available": _NO_TENSORFLOW + "The answer is always no: remove the line.",
    "is_flax_available": _NO_TENSORFLOW + "The answer is always no: remove the line.",
    "is_torch_tpu_available": "Use is_torch_xla_available().",
    "is_safetensors_available": "safetensors is always there: remove the line.",
    "create_optimizer": _NO_TENSORFLOW + "Use AdamW and get_scheduler(...).",
    "AdamWeightDecay": _NO_TENSORFLOW + "Use AdamW.",
    "WarmUp": _NO_TENSORFLOW + "Use get_scheduler(...).",
    "GradientAccumulator": _NO_TENSORFLOW + "Set gradient_accumulation_steps.",
    "KerasMetricCallback": _NO_TENSORFLOW + "Use compute_metrics of Trainer.",
    "shape_list": _NO_TENSORFLOW + "Use tensor.shape.",
    "Agent": "Agents have a package of their own: smolagents.",
    "Tool": "Agents have a package of their own: smolagents.",
    "load_tool": "Agents have a package of their own: smolagents.",
    # of datasets
    "Metric": _EVALUATE,
    "MetricInfo": _EVALUATE,
    "list_metrics": _EVALUATE,
    "inspect_metric": _EVALUATE,
    "list_datasets": "Use huggingface_hub.list_datasets().",
    "inspect_dataset": "Data sets have no scripts any more: look at their page on the hub.",
    "BeamBasedBuilder": "Use GeneratorBasedBuilder.",
    "set_caching_enabled": "Use enable_caching() or disable_caching().",
}

# Families of models that transformers has removed as a whole; it last had them in its releases 4.
REMOVED_FAMILIES = (
    "Deta", "EfficientFormer", "ErnieM", "GPTSanJapanese", "Graphormer", "Jukebox", "MCTCT", "MMBT", "Mega", "Nat",
    "Nezha", "OpenLlama", "QDQBert", "Realm", "RetriBert", "Speech2Text2", "Tapex", "TrajectoryTransformer",
    "TransfoXL", "Tvlt", "Van", "ViTHybrid", "XLMProphetNet",
)  # fmt: skip
_PARTS_OF_A_FAMILY = ("Config", "Model", "PreTrainedModel", "Tokenizer", "Processor", "ImageProcessor", "For", "LMHead")


def new_name(name: str, names: Container[str]) -> str | None:
    """Give the name that the same thing has today.

    Args:
        name: a name that no library has.
        names: the names that the libraries have.

    Example:
        >>> new_name("EvaluationStrategy", ["IntervalStrategy"]), new_name("ViTFeatureExtractor", ["ViTImageProcessor"])
        ('IntervalStrategy', 'ViTImageProcessor')
    """
    if name in RENAMED:
        return RENAMED[name]
    processor = name.removesuffix("FeatureExtractor") + "ImageProcessor"
    return processor if name.endswith("FeatureExtractor") and processor in names else None


def advice(name: str, names: Container[str]) -> str | None:
    """Say what to use instead of a name that the libraries once had.

    Args:
        name: a name that no library has.
        names: the names that the libraries have.

    Returns:
        The advice, or None where the name is not known from any release.

    Example:
        >>> advice("TFBertModel", ["BertModel"])
        'transformers 5 has PyTorch models only. Use BertModel.'
    """
    if name in DROPPED:
        return DROPPED[name]
    for prefix in ("TF", "Flax"):
        twin = name.removeprefix(prefix)
        if twin != name and twin in names:
            return f"{_NO_TENSORFLOW}Use {twin}."
    for family in REMOVED_FAMILIES:
        if name.startswith(family) and name.removeprefix(family).startswith(_PARTS_OF_A_FAMILY):
            return (
                "transformers 5 has this family of models no more. Choose another family, or stay with transformers 4."
            )
    if name.endswith(("Tokenizer", "TokenizerFast")) and name[0].isupper() and _has_family(name, names):
        return "This class is gone. AutoTokenizer.from_pretrained(...) loads the tokenizer of the checkpoint."
    return None


def _has_family(name: str, names: Container[str]) -> bool:
    return name.partition("Tokenizer")[0] + "Config" in names
