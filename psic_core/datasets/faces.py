"""CelebA's forty attributes in words: for each a prompt that says yes and one that says no."""

from collections.abc import Sequence

#: CelebA's name of an attribute (Liu et al. 2015) to the prompt where it holds and the one where it does not. The
#: second names the opposite where the language has a word for exactly that, and says "without" or "not" elsewhere.
PROMPTS: dict[str, tuple[str, str]] = {
    "5_o_Clock_Shadow": (
        "a photo of a person with a five o'clock shadow",
        "a photo of a person without a five o'clock shadow",
    ),
    "Arched_Eyebrows": ("a photo of a person with arched eyebrows", "a photo of a person without arched eyebrows"),
    "Attractive": ("a photo of an attractive person", "a photo of an unattractive person"),
    "Bags_Under_Eyes": (
        "a photo of a person with bags under the eyes",
        "a photo of a person without bags under the eyes",
    ),
    "Bald": ("a photo of a bald person", "a photo of a person who is not bald"),
    "Bangs": ("a photo of a person with bangs", "a photo of a person without bangs"),
    "Big_Lips": ("a photo of a person with big lips", "a photo of a person without big lips"),
    "Big_Nose": ("a photo of a person with a big nose", "a photo of a person without a big nose"),
    "Black_Hair": ("a photo of a person with black hair", "a photo of a person without black hair"),
    "Blond_Hair": ("a photo of a person with blond hair", "a photo of a person without blond hair"),
    "Blurry": ("a blurry photo of a person", "a sharp photo of a person"),
    "Brown_Hair": ("a photo of a person with brown hair", "a photo of a person without brown hair"),
    "Bushy_Eyebrows": ("a photo of a person with bushy eyebrows", "a photo of a person without bushy eyebrows"),
    "Chubby": ("a photo of a chubby person", "a photo of a person who is not chubby"),
    "Double_Chin": ("a photo of a person with a double chin", "a photo of a person without a double chin"),
    "Eyeglasses": ("a photo of a person with eyeglasses", "a photo of a person without eyeglasses"),
    "Goatee": ("a photo of a person with a goatee", "a photo of a person without a goatee"),
    "Gray_Hair": ("a photo of a person with gray hair", "a photo of a person without gray hair"),
    "Heavy_Makeup": ("a photo of a person with heavy makeup", "a photo of a person without heavy makeup"),
    "High_Cheekbones": ("a photo of a person with high cheekbones", "a photo of a person without high cheekbones"),
    "Male": ("a photo of a man", "a photo of a woman"),
    "Mouth_Slightly_Open": (
        "a photo of a person with a slightly open mouth",
        "a photo of a person with a closed mouth",
    ),
    "Mustache": ("a photo of a person with a mustache", "a photo of a person without a mustache"),
    "Narrow_Eyes": ("a photo of a person with narrow eyes", "a photo of a person without narrow eyes"),
    "No_Beard": ("a photo of a person without a beard", "a photo of a person with a beard"),
    "Oval_Face": ("a photo of a person with an oval face", "a photo of a person without an oval face"),
    "Pale_Skin": ("a photo of a person with pale skin", "a photo of a person without pale skin"),
    "Pointy_Nose": ("a photo of a person with a pointy nose", "a photo of a person without a pointy nose"),
    "Receding_Hairline": (
        "a photo of a person with a receding hairline",
        "a photo of a person without a receding hairline",
    ),
    "Rosy_Cheeks": ("a photo of a person with rosy cheeks", "a photo of a person without rosy cheeks"),
    "Sideburns": ("a photo of a person with sideburns", "a photo of a person without sideburns"),
    "Smiling": ("a photo of a person who is smiling", "a photo of a person who is not smiling"),
    "Straight_Hair": ("a photo of a person with straight hair", "a photo of a person without straight hair"),
    "Wavy_Hair": ("a photo of a person with wavy hair", "a photo of a person without wavy hair"),
    "Wearing_Earrings": ("a photo of a person wearing earrings", "a photo of a person not wearing earrings"),
    "Wearing_Hat": ("a photo of a person wearing a hat", "a photo of a person not wearing a hat"),
    "Wearing_Lipstick": ("a photo of a person wearing lipstick", "a photo of a person not wearing lipstick"),
    "Wearing_Necklace": ("a photo of a person wearing a necklace", "a photo of a person not wearing a necklace"),
    "Wearing_Necktie": ("a photo of a person wearing a necktie", "a photo of a person not wearing a necktie"),
    "Young": ("a photo of a young person", "a photo of an old person"),
}


def prompts(attributes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The prompts (yes, no) of attributes by CelebA's names, in the given order.

    Raises:
        ValueError: A name that CelebA does not have.
    """
    unknown = [name for name in attributes if name not in PROMPTS]
    if unknown:
        raise ValueError(
            f"no prompts for the attribute {unknown[0]!r}; the second line of list_attr_celeba.txt may name "
            f"CelebA's own, {', '.join(PROMPTS)}"
        )
    return tuple(PROMPTS[name] for name in attributes)
