"""The closed vocabulary of what can be said about a synthetic micrograph. Knows nothing about pixels.

Every word names something a person can see in the picture. WORDS is the union over the classes; CLASS_WORDS says
which of them a class may use. A facet maps to one word, `defects` to a list (empty where there is none).
"""

FACETS = ("shape", "surface", "arrangement", "distribution", "touching", "polarity", "defects")

POLARITIES = ("bright on dark", "dark on bright", "even")

VISIBLE_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "biological": {
        "shape": ("spherical", "rod-like", "biconcave", "spiny", "disc-like"),
        "surface": ("smooth", "wrinkled", "spiny", "porous"),
        "arrangement": ("random", "clustered", "isolated"),
        "distribution": ("uniform",),
        "touching": ("separate", "touching", "overlapping"),
        "defects": ("debris", "collapsed cell"),
    },
    "fibres": {
        "shape": ("straight", "curved"),
        "surface": ("smooth", "rough", "striated"),
        "arrangement": ("random", "aligned", "network"),
        "distribution": ("uniform", "broad"),
        "touching": ("overlapping", "fused"),
        "defects": ("bead", "debris"),
    },
    "films_coated_surface": {
        "shape": ("faceted", "rounded", "plate-like", "continuous", "columnar"),
        "surface": ("smooth", "granular", "cracked", "wrinkled", "striated"),
        "arrangement": ("random", "network", "layered", "aligned"),
        "distribution": ("uniform", "broad"),
        "touching": ("touching", "separate", "fused"),
        "defects": ("pinhole", "scratch", "contamination", "delamination"),
    },
    "mems_devices_electrodes": {
        "shape": ("comb", "cantilever", "serpentine", "bridge", "gear"),
        "surface": ("smooth", "granular"),
        "arrangement": ("periodic", "isolated"),
        "distribution": ("uniform",),
        "touching": ("separate", "touching"),
        "defects": ("broken finger", "broken beam", "debris", "scratch"),
    },
    "nanowires": {
        "shape": ("straight", "tapered"),
        "surface": ("smooth", "rough"),
        "arrangement": ("random", "aligned", "network"),
        "distribution": ("uniform", "broad"),
        "touching": ("separate", "overlapping"),
        "defects": ("broken wire", "agglomerate"),
    },
    "particles": {
        "shape": ("spherical", "faceted", "rod-like", "irregular"),
        "surface": ("smooth", "rough"),
        "arrangement": ("random", "clustered", "periodic", "isolated"),
        "distribution": ("uniform", "broad"),
        "touching": ("separate", "touching"),
        "defects": ("agglomerate", "contamination", "scratch", "vacancy"),
    },
    "patterned_surface": {
        "shape": ("lines", "pillars", "holes", "grid"),
        "surface": ("smooth", "rough"),
        "arrangement": ("periodic",),
        "distribution": ("uniform",),
        "touching": ("separate", "fused"),
        "defects": (
            "missing line",
            "bridge",
            "broken line",
            "missing pillar",
            "missing hole",
            "contamination",
        ),
    },
    "porous_sponge": {
        "shape": ("rounded", "polygonal", "irregular"),
        "surface": ("smooth", "rough"),
        "arrangement": ("random", "network"),
        "distribution": ("uniform", "broad"),
        "touching": ("touching", "fused"),
        "defects": ("crack",),
    },
    "powder": {
        "shape": ("spherical", "faceted", "irregular", "flake-like"),
        "surface": ("smooth", "rough"),
        "arrangement": ("random",),
        "distribution": ("uniform", "broad"),
        "touching": ("overlapping", "fused"),
        "defects": ("satellite",),
    },
    "tips": {
        "shape": ("needle-like", "conical", "pyramidal"),
        "surface": ("smooth", "rough", "striated"),
        "arrangement": ("isolated", "periodic"),
        "distribution": ("uniform",),
        "touching": ("separate",),
        "defects": ("blunt apex", "bent apex", "debris"),
    },
}

for _facets in VISIBLE_WORDS.values():
    _facets["polarity"] = POLARITIES

WORDS: dict[str, tuple[str, ...]] = {
    facet: tuple(dict.fromkeys(word for facets in VISIBLE_WORDS.values() for word in facets[facet])) for facet in FACETS
}
