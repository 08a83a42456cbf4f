"""ADE20K (Zhou et al. 2017) as in the scene parsing challenge: 150 classes, of which 100 are things.

Semantic maps count from 0, as Detectron2 has them ("annotations_detectron2"). In panoptic and instance json files a
class's id is its place in the list of 150, as Mask2Former's users have them, so their files are read as well.
"""

from __future__ import annotations

from grounding_dino.data.datasets.segmentation_classes import SegmentationClass, spread_color
from grounding_dino.data.datasets.segmentation_sets import (
    register_instance_set,
    register_panoptic_set,
    register_semantic_set,
)

ROOT = "ADEChallengeData2016"
HINT = (
    "download ADEChallengeData2016.zip and annotations_instance.tar as datasets/README.md says, and run "
    "`python datasets/prepare_ade20k.py`, which unpacks them and makes the rest"
)
SPLITS = {"train": "training", "val": "validation"}  # ours -> the folders'

# In the order of the published list, by the names that Detectron2 gives them; * marks things, which instance maps count
# from 1 in the same order.
_NAMES = """
wall; building; sky; floor; tree; ceiling; road, route; *bed; *window; grass; *cabinet; sidewalk, pavement; *person;
earth, ground; *door; *table; mountain, mount; plant; *curtain; *chair; *car; water; *painting, picture; *sofa; *shelf;
house; sea; *mirror; rug; field; *armchair; *seat; *fence; *desk; rock, stone; *wardrobe, closet, press; *lamp; *tub;
*rail; *cushion; base, pedestal, stand; *box; *column, pillar; *signboard, sign;
*chest of drawers, chest, bureau, dresser; *counter; sand; *sink; skyscraper; *fireplace; *refrigerator, icebox;
grandstand, covered stand; path; *stairs; runway; *case, display case, showcase, vitrine;
*pool table, billiard table, snooker table; *pillow; *screen door, screen; stairway, staircase; river; bridge, span;
*bookcase; blind, screen; *coffee table; *toilet, can, commode, crapper, pot, potty, stool, throne; *flower; *book;
hill; *bench; *countertop; *stove; *palm, palm tree; *kitchen island; *computer; *swivel chair; *boat; bar;
*arcade machine; hovel, hut, hutch, shack, shanty; *bus; *towel; *light; *truck; tower; *chandelier;
*awning, sunshade, sunblind; *street lamp; *booth; *tv; *plane; dirt track; *clothes; *pole; land, ground, soil;
*bannister, banister, balustrade, balusters, handrail; escalator, moving staircase, moving stairway;
*ottoman, pouf, pouffe, puff, hassock; *bottle; buffet, counter, sideboard;
poster, posting, placard, notice, bill, card; stage; *van; *ship; *fountain;
conveyer belt, conveyor belt, conveyer, conveyor, transporter; canopy; *washer, automatic washer, washing machine;
*plaything, toy; pool; *stool; *barrel, cask; *basket, handbasket; falls; tent; *bag; *minibike, motorbike; cradle;
*oven; *ball; *food, solid food; *step, stair; tank, storage tank; *trade name; *microwave; *pot; *animal; *bicycle;
lake; *dishwasher; *screen; blanket, cover; *sculpture; *hood, exhaust hood; *sconce; *vase; *traffic light; *tray;
*trash can; *fan; pier; crt screen; *plate; *monitor; *bulletin board; shower; *radiator; *glass, drinking glass;
*clock; *flag
"""


def _parse(table: str) -> tuple[SegmentationClass, ...]:
    entries = [" ".join(entry.split()) for entry in table.split(";")]
    return tuple(
        SegmentationClass(i, entry.lstrip("*"), entry.startswith("*"), spread_color(i))
        for i, entry in enumerate(entries)
    )


CLASSES = _parse(_NAMES)


def instance_json(split: str) -> str:
    """The COCO json of a split's instances below the folder of data sets."""
    return f"{ROOT}/ade20k_instance_{split}.json"


def register_ade20k() -> None:
    """Register ade20k_{sem_seg,instance,panoptic}_{train,val}, but for names that are taken."""
    for split, folder in SPLITS.items():
        images, labels = f"{ROOT}/images/{folder}", f"{ROOT}/annotations_detectron2/{folder}"
        register_semantic_set(f"ade20k_sem_seg_{split}", CLASSES, HINT, images, labels)
        register_instance_set(f"ade20k_instance_{split}", CLASSES, HINT, images, instance_json(split))
        register_panoptic_set(
            f"ade20k_panoptic_{split}",
            CLASSES,
            HINT,
            image_root=images,
            panoptic_root=f"{ROOT}/ade20k_panoptic_{split}",
            panoptic_json=f"{ROOT}/ade20k_panoptic_{split}.json",
            json_file=instance_json(split),
            sem_seg_root=labels,
        )
