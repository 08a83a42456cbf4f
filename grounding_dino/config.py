"""Every configuration key that this project adds to Detectron2's defaults.

`add_grounding_dino_config(cfg)` is called right after `detectron2.config.get_cfg()`. Switches end in `_ON`.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_grounding_dino_config(cfg: CN) -> None:
    """Add the keys of this project to a Detectron2 config, in place."""
    _add_model(cfg)
    _add_backbones(cfg)
    _add_text_encoder(cfg)
    _add_pixel_decoder(cfg)
    _add_transformer_decoder(cfg)
    _add_dense_head(cfg)
    _add_training(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_fine_tuning(cfg)
    _add_evaluation(cfg)


def _add_model(cfg: CN) -> None:
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedDINO"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB, as all models of this family
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.EMBED_DIM = 256  # channels of image tokens, text tokens and queries
    # Pad pictures to the batch's largest before the backbone also at inference, as the authors do; then a
    # picture's result depends on its batch. Training always pads first.
    cfg.MODEL.PAD_BEFORE_BACKBONE_ON = False
    # Whether padding is masked. False: it counts as picture and boxes are relative to the padded size, as in Mask DINO;
    # then a picture is padded to a multiple of SIZE_DIVISIBILITY pixels before the backbone (0: not at all).
    cfg.MODEL.PADDING_MASK_ON = True
    cfg.MODEL.SIZE_DIVISIBILITY = 0
    cfg.MODEL.WEIGHTS_IGNORE = []  # regular expressions of checkpoint keys (in our names) not to load
    cfg.MODEL.WARM_START_ON = False  # a training takes what fits from MODEL.WEIGHTS and lists the rest; else an error
    # Where the weights of this config are published, and what they score; informative only.
    cfg.MODEL.RELEASE = CN()
    cfg.MODEL.RELEASE.URL = ""
    cfg.MODEL.RELEASE.METRIC = ""


def _add_backbones(cfg: CN) -> None:
    cfg.MODEL.BACKBONE.NAME = "SwinTransformer"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # ResNet: stages frozen, counted from the stem
    cfg.MODEL.BACKBONE.WEIGHTS = ""  # of the backbone alone (.pth, .safetensors); read when a training starts

    cfg.MODEL.SWIN = CN()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    cfg.MODEL.SWIN.MLP_RATIO = 4.0
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2
    cfg.MODEL.SWIN.OUT_FEATURES = ["stage2", "stage3", "stage4"]  # strides 8, 16, 32; stage1 has stride 4
    cfg.MODEL.SWIN.ACTIVATION_CHECKPOINTING_ON = False

    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "resnet18"  # any timm model that supports features_only; outputs are named by stride: "s8"
    cfg.MODEL.TIMM.OUT_STRIDES = [8, 16, 32]
    cfg.MODEL.TIMM.PRETRAINED_ON = False  # fetch timm's weights when a training starts; needs a network
    cfg.MODEL.TIMM.OPTIONS = CN(new_allowed=True)  # further keyword arguments of timm.create_model
    cfg.MODEL.TIMM.OUT_NORMS_ON = False  # a LayerNorm over the channels of each output map, as DINO's ConvNeXt has
    cfg.MODEL.TIMM.ACTIVATION_CHECKPOINTING_ON = False

    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.ACTIVATION_CHECKPOINTING_ON = False


def _add_text_encoder(cfg: CN) -> None:
    cfg.MODEL.TEXT_ENCODER = CN()
    cfg.MODEL.TEXT_ENCODER.NAME = "BertEncoder"  # "" for models without text
    cfg.MODEL.TEXT_ENCODER.WEIGHTS = ""  # a local folder or file of BERT's; read when a training starts
    cfg.MODEL.TEXT_ENCODER.VOCABULARY = ""  # a WordPiece vocabulary file; "" is bert-base-uncased's, in the package
    cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = 256
    cfg.MODEL.TEXT_ENCODER.HIDDEN_SIZE = 768
    cfg.MODEL.TEXT_ENCODER.NUM_LAYERS = 12
    cfg.MODEL.TEXT_ENCODER.NUM_HEADS = 12
    cfg.MODEL.TEXT_ENCODER.FFN_DIM = 3072
    cfg.MODEL.TEXT_ENCODER.MAX_POSITIONS = 512
    cfg.MODEL.TEXT_ENCODER.VOCABULARY_SIZE = 30522
    cfg.MODEL.TEXT_ENCODER.DROPOUT = 0.1
    cfg.MODEL.TEXT_ENCODER.PROJECTION_ON = True  # a linear layer to EMBED_DIM; False: BERT's own features (GLIP)
    # Tokens attend inside their own phrase alone; False: to the whole prompt, to which no period is added (GLIP).
    cfg.MODEL.TEXT_ENCODER.SUB_SENTENCE_ON = True
    cfg.MODEL.TEXT_ENCODER.FREEZE_ON = False
    cfg.MODEL.TEXT_ENCODER.CACHE_SIZE = 1024  # prompts whose features are kept at inference
    cfg.MODEL.TEXT_ENCODER.ACTIVATION_CHECKPOINTING_ON = False


def _add_pixel_decoder(cfg: CN) -> None:
    cfg.MODEL.PIXEL_DECODER = CN()
    cfg.MODEL.PIXEL_DECODER.NAME = "DeformableEncoder"
    cfg.MODEL.PIXEL_DECODER.IN_FEATURES = ["stage2", "stage3", "stage4"]  # finest first
    cfg.MODEL.PIXEL_DECODER.NUM_FEATURE_LEVELS = 4  # levels beyond IN_FEATURES: stride-2 convolutions
    cfg.MODEL.PIXEL_DECODER.PROJECTION_BIAS_ON = True  # of the convolutions from backbone maps to levels
    cfg.MODEL.PIXEL_DECODER.NUM_LAYERS = 6
    cfg.MODEL.PIXEL_DECODER.NUM_HEADS = 8
    cfg.MODEL.PIXEL_DECODER.NUM_POINTS = 4
    cfg.MODEL.PIXEL_DECODER.FFN_DIM = 2048
    cfg.MODEL.PIXEL_DECODER.DROPOUT = 0.0
    cfg.MODEL.PIXEL_DECODER.POSITION_TEMPERATURE = 20.0
    cfg.MODEL.PIXEL_DECODER.ACTIVATION_CHECKPOINTING_ON = False
    cfg.MODEL.PIXEL_DECODER.TEXT_FUSION = CN()
    cfg.MODEL.PIXEL_DECODER.TEXT_FUSION.EMBED_DIM = 1024
    cfg.MODEL.PIXEL_DECODER.TEXT_FUSION.NUM_HEADS = 4
    cfg.MODEL.PIXEL_DECODER.TEXT_FUSION.DROP_PATH_RATE = 0.1
    cfg.MODEL.PIXEL_DECODER.TEXT_FUSION.DROPOUT = 0.0
    cfg.MODEL.PIXEL_DECODER.TEXT_FUSION.INIT_SCALE = 1e-4  # of the residual branch (gamma)
    cfg.MODEL.PIXEL_DECODER.TEXT_LAYER = CN()
    cfg.MODEL.PIXEL_DECODER.TEXT_LAYER.NUM_HEADS = 4
    cfg.MODEL.PIXEL_DECODER.TEXT_LAYER.FFN_DIM = 1024
    cfg.MODEL.PIXEL_DECODER.TEXT_LAYER.DROPOUT = 0.0


def _add_transformer_decoder(cfg: CN) -> None:
    cfg.MODEL.QUERY_SELECTION = CN()
    cfg.MODEL.QUERY_SELECTION.NUM_QUERIES = 900
    cfg.MODEL.QUERY_SELECTION.NAME = "TopTokens"  # or "LearnedQueries": learned content and boxes, no encoder loss
    cfg.MODEL.QUERY_SELECTION.CONTENT = "learned"  # of a query: or "selected", its image token (Mask DINO)
    cfg.MODEL.QUERY_SELECTION.SHARED_HEADS_ON = False  # rank and propose with the decoder's heads (Mask DINO)
    # The level whose proposals have the side 0.05, which doubles from level to level: "finest" or "coarsest".
    cfg.MODEL.QUERY_SELECTION.SMALLEST_PROPOSALS = "finest"
    # The decoder's first boxes: "no" takes the selected ones; "mask2box" and "bitmask" those around the queries' masks
    # (without and with the last pixel's own width).
    cfg.MODEL.QUERY_SELECTION.BOX_INIT = "no"

    cfg.MODEL.TRANSFORMER_DECODER = CN()
    cfg.MODEL.TRANSFORMER_DECODER.NAME = "DINODecoder"
    cfg.MODEL.TRANSFORMER_DECODER.NUM_LAYERS = 6
    cfg.MODEL.TRANSFORMER_DECODER.NUM_HEADS = 8
    cfg.MODEL.TRANSFORMER_DECODER.NUM_POINTS = 4
    cfg.MODEL.TRANSFORMER_DECODER.FFN_DIM = 2048
    cfg.MODEL.TRANSFORMER_DECODER.DROPOUT = 0.0
    cfg.MODEL.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON = True  # one for all layers (authors), or one each (mmdet)
    cfg.MODEL.TRANSFORMER_DECODER.REFERENCE_EPS = 1e-3  # of the inverse sigmoid that refines references
    cfg.MODEL.TRANSFORMER_DECODER.BOX_EPS = 1e-3  # of the inverse sigmoid behind predicted boxes
    cfg.MODEL.TRANSFORMER_DECODER.INITIAL_PREDICTION_ON = False  # predictions from the queries, before layer 1, too
    cfg.MODEL.TRANSFORMER_DECODER.NORM_BEFORE_HEADS_ON = False  # once more, before class and mask heads (Mask DINO)
    cfg.MODEL.TRANSFORMER_DECODER.ACTIVATION_CHECKPOINTING_ON = False

    cfg.MODEL.CLASS_HEAD = CN()
    cfg.MODEL.CLASS_HEAD.NAME = "TokenContrast"  # against text tokens; or "Linear": a fixed list of classes
    cfg.MODEL.CLASS_HEAD.SHARED_ON = False  # one for all layers, or one each
    cfg.MODEL.CLASS_HEAD.NUM_CLASSES = 0  # columns of "Linear"; 0: as many as the first set of TRAIN, or TEST, has
    # The column of each class of the data set, where they are not in its order: DINO's columns are COCO's category ids.
    cfg.MODEL.CLASS_HEAD.CATEGORY_IDS = []
    # Names of the classes of "Linear", and the indices of those that are things; [] leaves both to the data sets.
    cfg.MODEL.CLASS_HEAD.CLASS_NAMES = []
    cfg.MODEL.CLASS_HEAD.THINGS = []
    # Of the dot product query . token: "none" (Grounding DINO), "sqrt_dim" (1/sqrt(C), MM-Grounding-DINO),
    # "learned" (exp of one parameter a layer, from 0).
    cfg.MODEL.CLASS_HEAD.SCALE = "none"
    cfg.MODEL.CLASS_HEAD.BIAS_ON = False  # one learned bias a layer, from -log(99)

    cfg.MODEL.MASK_HEAD = CN()  # built where MODEL.MASK_ON is True
    cfg.MODEL.MASK_HEAD.IN_FEATURE = "res2"  # the backbone's map of stride 4
    cfg.MODEL.MASK_HEAD.EMBED_DIM = 256  # channels of mask features


def _add_dense_head(cfg: CN) -> None:
    """GLIP's."""
    cfg.MODEL.DENSE_HEAD = CN()
    cfg.MODEL.DENSE_HEAD.IN_FEATURES = ["stage2", "stage3", "stage4"]  # finest first; two coarser levels are added
    cfg.MODEL.DENSE_HEAD.NUM_BLOCKS = 6
    cfg.MODEL.DENSE_HEAD.NUM_GROUPS = 16  # of the norms behind deformable convolutions
    cfg.MODEL.DENSE_HEAD.ACTIVATION_CHECKPOINTING_ON = False
    cfg.MODEL.DENSE_HEAD.TEXT_FUSION = CN()  # in every block; its text layers have the sizes of TEXT_ENCODER's
    cfg.MODEL.DENSE_HEAD.TEXT_FUSION.ENABLED_ON = True
    cfg.MODEL.DENSE_HEAD.TEXT_FUSION.EMBED_DIM = 2048
    cfg.MODEL.DENSE_HEAD.TEXT_FUSION.NUM_HEADS = 8
    cfg.MODEL.DENSE_HEAD.TEXT_FUSION.DROPOUT = 0.1
    cfg.MODEL.DENSE_HEAD.TEXT_FUSION.DROP_PATH_RATE = 0.0
    cfg.MODEL.DENSE_HEAD.TEXT_FUSION.INIT_SCALE = 1 / 6  # of the residual branch (gamma)
    # Rows of learned vectors, one added to each place of the prompt (prompt tuning); 0: none. Released files have none.
    cfg.MODEL.DENSE_HEAD.PROMPT_VECTORS = 0
    cfg.MODEL.DENSE_HEAD.ANCHOR_SCALE = 8.0  # side of the anchors in strides
    cfg.MODEL.DENSE_HEAD.NUM_CANDIDATES = 9  # of a level and object that the assignment looks at (ATSS)
    cfg.MODEL.DENSE_HEAD.SCORE_THRESHOLD = 0.05  # categories of places that score less are dropped; before centerness
    cfg.MODEL.DENSE_HEAD.PRE_NMS_TOPK = 1000  # pairs of place and category kept of each level
    cfg.MODEL.DENSE_HEAD.NMS_THRESHOLD = 0.6
    # The authors rank a level's pairs by score and centerness, and overlaps count the last pixel; mmdet does neither.
    cfg.MODEL.DENSE_HEAD.RANK_BY_CENTERNESS_ON = True
    cfg.MODEL.DENSE_HEAD.NMS_LAST_PIXEL_ON = True


def _add_training(cfg: CN) -> None:
    cfg.MODEL.DENOISING = CN()
    cfg.MODEL.DENOISING.ENABLED_ON = True
    cfg.MODEL.DENOISING.NUM_QUERIES = 100  # per half; groups = max(1, this // largest target count)
    cfg.MODEL.DENOISING.MAX_QUERIES = 2000  # upper bound on denoising queries, for dense pictures
    cfg.MODEL.DENOISING.NUM_GROUPS = 0  # a fixed number of groups instead
    cfg.MODEL.DENOISING.MIN_GROUPS = 1  # 0: no denoising where there are more targets than NUM_QUERIES (Mask DINO)
    cfg.MODEL.DENOISING.CONTRASTIVE_ON = True  # a negative half too (DINO); False: positives alone (Mask DINO)
    cfg.MODEL.DENOISING.LABEL_NOISE_RATIO = 0.5
    cfg.MODEL.DENOISING.BOX_NOISE_SCALE = 1.0
    cfg.MODEL.DENOISING.BOX_NOISE = "corners"  # what moves (DINO); or "centre_and_size" (Mask DINO)
    cfg.MODEL.DENOISING.NUM_LABELS = 256  # rows of the label embedding; 0: as many as CLASS_HEAD has classes

    cfg.MODEL.MATCHER = CN()
    cfg.MODEL.MATCHER.CLASS_WEIGHT = 2.0
    cfg.MODEL.MATCHER.L1_WEIGHT = 5.0
    cfg.MODEL.MATCHER.GIOU_WEIGHT = 2.0
    cfg.MODEL.MATCHER.MASK_WEIGHT = 5.0
    cfg.MODEL.MATCHER.DICE_WEIGHT = 5.0

    cfg.MODEL.LOSS = CN()
    cfg.MODEL.LOSS.CLASS_WEIGHT = 1.0
    cfg.MODEL.LOSS.L1_WEIGHT = 5.0
    cfg.MODEL.LOSS.GIOU_WEIGHT = 2.0
    cfg.MODEL.LOSS.CENTERNESS_WEIGHT = 1.0  # GLIP
    cfg.MODEL.LOSS.FOCAL_ALPHA = 0.25
    cfg.MODEL.LOSS.FOCAL_GAMMA = 2.0
    cfg.MODEL.LOSS.CLASS = "focal"  # or "cross_entropy", with one more column for "no object"
    cfg.MODEL.LOSS.NO_OBJECT_WEIGHT = 0.1  # of queries without a target in the cross-entropy
    cfg.MODEL.LOSS.MASK_WEIGHT = 5.0
    cfg.MODEL.LOSS.DICE_WEIGHT = 5.0
    cfg.MODEL.LOSS.BOXES_OF_STUFF_ON = True  # False: only things have box losses (panoptic)
    cfg.MODEL.LOSS.NUM_POINTS = 12544  # places at which masks are compared, in losses and matching
    cfg.MODEL.LOSS.OVERSAMPLE_RATIO = 3.0  # candidates for each place of the losses
    cfg.MODEL.LOSS.IMPORTANCE_SAMPLE_RATIO = 0.75  # share of the places that are the most uncertain candidates


def _add_input(cfg: CN) -> None:
    cfg.INPUT.MAPPER = "TextDetectionMapper"  # a name of MAPPER_REGISTRY
    # Negative category names per training prompt: -1 lists all names of the data set (while they fit).
    cfg.INPUT.NUM_NEGATIVE_CATEGORIES = -1
    cfg.INPUT.FULL_NEGATIVES_PROBABILITY = 0.5  # else their number is uniform in 1 ... NUM_NEGATIVE_CATEGORIES
    cfg.INPUT.SHUFFLE_CATEGORIES_ON = True
    cfg.INPUT.SPLIT_NAMES_ON = False  # training prompts ask for "cup/mug" by one of its parts, drawn at random
    # What happens where a picture with words of its own is mirrored: "swap_words" exchanges left and right in them,
    # "off" mirrors only pictures of category prompts.
    cfg.INPUT.FLIP_WITH_TEXT = "swap_words"
    cfg.INPUT.CROP.MIN_SIZES = [400, 500, 600]  # shorter sides that DETR's policy resizes to before its crop
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0  # semantic crops avoid a class that fills more than this share
    cfg.INPUT.LARGE_SCALE_JITTER = CN()  # resize by a factor, then crop or pad to a square; replaces resizing and crop
    cfg.INPUT.LARGE_SCALE_JITTER.ENABLED_ON = False
    cfg.INPUT.LARGE_SCALE_JITTER.SIZE = 1024
    cfg.INPUT.LARGE_SCALE_JITTER.MIN_SCALE = 0.1
    cfg.INPUT.LARGE_SCALE_JITTER.MAX_SCALE = 2.0
    cfg.INPUT.COLOR_AUG_SSD_ON = False  # SSD's changes of brightness, contrast, saturation and hue
    cfg.INPUT.SIZE_DIVISIBILITY = -1  # sides of semantic training pictures are padded to multiples of it; -1: not
    cfg.INPUT.COLOR_JITTER = CN()
    cfg.INPUT.COLOR_JITTER.PROBABILITY = 0.0  # share of training pictures whose colours are changed
    cfg.INPUT.COLOR_JITTER.STRENGTH = 0.4  # brightness, contrast and saturation times 1 - this ... 1 + this

    # NAME=annotations:image_folder entries that the command line's --dataset adds
    cfg.DATASETS.EXTRA = []
    # How often pictures of each set of DATASETS.TRAIN are drawn, relative to each other; [] draws every picture once
    # an epoch.
    cfg.DATASETS.WEIGHTS = []
    # How often each set of DATASETS.TRAIN is gone through in an epoch: 2 repeats it, 0.1 draws a tenth; [] once. Give
    # either this or WEIGHTS.
    cfg.DATASETS.RATIOS = []
    # Data set name -> settings that hold for it alone: NUM_NEGATIVE_CATEGORIES, FULL_NEGATIVES_PROBABILITY,
    # SHUFFLE_CATEGORIES_ON, SPLIT_NAMES_ON, RANDOM_FLIP (as in INPUT), NAMES_FILE (json: category -> name in prompts).
    cfg.DATASETS.TEXT = CN(new_allowed=True)
    cfg.DATALOADER.REPEAT_SETS = []  # sets that repeat factors hold for; [] all of DATASETS.TRAIN
    cfg.DATASETS.STRICT_ON = False  # a broken row of a JSON-lines file stops the run instead of being counted


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.WEIGHT_DECAY_NORM = 1e-4
    # [pattern, learning-rate multiplier, decay multiplier]: the first regular expression found in a name wins.
    cfg.SOLVER.PARAMETER_GROUPS = [["^backbone\\.", 0.1, 1.0], ["^text_encoder\\.bert\\.", 0.1, 1.0]]
    cfg.SOLVER.FREEZE = []  # regular expressions of parameters that are not trained
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    cfg.SOLVER.BEST_CHECKPOINT_METRIC = ""  # e.g. "bbox/AP"; "" keeps no best checkpoint
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # or "float16"; used where SOLVER.AMP.ENABLED
    cfg.SOLVER.CHECKPOINTS_KEPT = 5  # older periodic checkpoints of the run are removed; 0 keeps all
    # The schedule in epochs of the training data: with MAX above 0 it replaces MAX_ITER, STEPS, CHECKPOINT_PERIOD and
    # TEST.EVAL_PERIOD (periods of 0 leave those as they are). SOLVER.MAX_ITER on the command line switches it off.
    cfg.SOLVER.EPOCHS = CN()
    cfg.SOLVER.EPOCHS.MAX = 0
    cfg.SOLVER.EPOCHS.STEPS = []
    cfg.SOLVER.EPOCHS.CHECKPOINT_PERIOD = 0
    cfg.SOLVER.EPOCHS.EVAL_PERIOD = 0
    cfg.SOLVER.ACCUMULATION_STEPS = 1  # backward passes an optimizer step; IMS_PER_BATCH is split among them
    cfg.SOLVER.DETERMINISTIC_ON = False  # only operations that give the same bits again; slower on a GPU
    cfg.SOLVER.DATA_PARALLEL = "ddp"  # or "fsdp2": parameters, gradients and optimizer state split over processes
    cfg.SOLVER.EMA = CN()  # exponential moving average of the weights, evaluated and saved beside them
    cfg.SOLVER.EMA.ENABLED_ON = False
    cfg.SOLVER.EMA.DECAY = 0.9998
    cfg.SOLVER.EARLY_STOP = CN()
    cfg.SOLVER.EARLY_STOP.PATIENCE = 0  # evaluations without a better BEST_CHECKPOINT_METRIC; 0 never stops early
    cfg.SOLVER.EARLY_STOP.MIN_GAIN = 0.0  # what counts as better
    # Learning-rate factor from one layer to the one before it, counted from the last; 1.0 trains all alike.
    cfg.SOLVER.LAYER_DECAY = CN()
    cfg.SOLVER.LAYER_DECAY.BACKBONE = 1.0
    cfg.SOLVER.LAYER_DECAY.TEXT_ENCODER = 1.0
    cfg.SOLVER.WANDB_PROJECT = ""  # Weights & Biases project that metrics also go to; needs the package wandb


def _add_fine_tuning(cfg: CN) -> None:
    cfg.MODEL.LORA = CN()  # low-rank adapters: only they, and what TRAIN names, are trained (needs the package peft)
    cfg.MODEL.LORA.ENABLED_ON = False
    cfg.MODEL.LORA.RANK = 8
    cfg.MODEL.LORA.ALPHA = 16
    cfg.MODEL.LORA.DROPOUT = 0.0
    cfg.MODEL.LORA.TARGETS = []  # regular expressions of linear layers; [] takes the attention and feed-forward layers
    cfg.MODEL.LORA.TRAIN = []  # regular expressions of parameters trained in full, and saved in the adapter file
    cfg.MODEL.LORA.WEIGHTS = ""  # an adapter file or folder to load and merge into MODEL.WEIGHTS


def _add_evaluation(cfg: CN) -> None:
    cfg.TEST.DETECTIONS_PER_IMAGE = 300  # best (query, category) pairs; of every prompt, and of a picture's together
    cfg.TEST.INSTANCE_ON = True  # what a model with masks gives: Instances,
    cfg.TEST.PANOPTIC_ON = False  # panoptic_seg,
    cfg.TEST.SEMANTIC_ON = False  # sem_seg
    cfg.TEST.OBJECT_MASK_THRESHOLD = 0.25  # panoptic: score from which a query counts
    cfg.TEST.OVERLAP_THRESHOLD = 0.8  # panoptic: share of its mask that a segment must win
    cfg.TEST.CLASS_TEMPERATURE = 0.06  # softmax over sigmoid scores in panoptic and semantic results; 0: none
    cfg.TEST.MASK_SCORE_ON = True  # instance scores times the mean probability inside the mask
    # Of Instances: "bitmask" gives pred_masks, "rle" pred_masks_rle, encoded in chunks; evaluations have the latter.
    cfg.TEST.MASK_FORMAT = "bitmask"
    cfg.TEST.PANOPTIC_FILES_ON = False  # write panoptic results in COCO's format (json and PNGs) below OUTPUT_DIR
    cfg.TEST.PRECISION = "float32"  # or "bfloat16", "float16": autocast of evaluations and predictors
    # Of models built to detect (load_predictor, the demo), not of trainings and their evaluations:
    cfg.TEST.COMPILE_ON = False  # torch.compile of what sees pictures; the first ones wait for the compiler
    cfg.TEST.CUDA_GRAPHS_ON = False  # replay CUDA graphs for sizes that come again; has no effect on a CPU
    cfg.TEST.RETAINED = ()  # data sets evaluated before and after fine-tuning, printed side by side with DATASETS.TEST
    cfg.TEST.MAX_DETECTIONS = 100  # detections of a picture and category that COCO's AP counts (COCO: 100)
    cfg.TEST.CATEGORIES_PER_PROMPT = 0  # 0 lists as many as fit; a smaller number splits long lists into more prompts
    # Prompts of all pictures of a batch that go through encoder and decoder at once, one of every picture at least;
    # 0: 4 on a GPU, and on a CPU, which gains nothing from more, as few as can be.
    cfg.TEST.PROMPTS_PER_BATCH = 0
    cfg.TEST.DESCRIPTIONS_PER_PROMPT = 1  # expressions or descriptions of a picture asked for at once; 0: all of them
    cfg.TEST.EXPRESSION_THRESHOLD = 0.7  # score from which a box is an answer where any number may be right (gRefCOCO)
    cfg.TEST.PLOTS_ON = False  # precision-recall curves, per-category bars and confusion as pictures in OUTPUT_DIR
