"""A question as people ask it -> what it asks for: its intents, and the quantities that answer each.

Spelling is put right first, and a question is read clause by clause, so that "what is this, and how big?" has two
intents while "diameter of the pores" has one. Knows nothing about pictures, answers or models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal

from assistant.quantities import QUANTITIES


@dataclass(frozen=True)
class Intent:
    """One thing that people ask for."""

    words: str
    """How a clause asks for it: a regular expression."""
    facts: tuple[str, ...] = ()
    """The quantities that answer it."""
    yields_to: tuple[str, ...] = ()
    """Intents of the same clause that its words only qualify: in "size of the pores" porosity yields to size."""


_THIS = r"(?:this|that|it|these|those|they|here)"
_PICTURE = r"(?:images?|pictures?|micrographs?|photos?|figure)"
_ELEMENTS = (
    r"(?:gold|silver|silicon|silica|copper|iron|steel|nickel|carbon|graphite|titan\w+|zinc|alumin\w+|tungsten|platinum|"
    r"oxygen|nitrogen|lithium|cobalt|mangan\w+|chrom\w+|lead|tin|sulphur|sulfur|oxide|organic)"
)
_FIELD = (
    rf"fields? of view|\bview ?fields?\b|\bf\.?o\.?v\b|\bhfw\b|field width|"
    r"(?:wide|size|large|big|width|dimensions?|area) "
    rf"(?:is |are |of |in )*(?:the |this |that )?(?:whole |full |entire |shown )?(?:{_PICTURE}|frame|scan|"
    rf"view)(?: (?:and )?in \w+)*\W*$|"
    rf"{_PICTURE} (?:size|width|dimensions?)|bild(?:ausschnitt|breite|feld)|gesichtsfeld|sehfeld|"
    r"champ de (?:vision|vue)|campo de visi[óo]n"
)
"""How people ask what the whole picture spans."""
_SE = r"\bbse\b|\bse\b(?! (?:tom|us|obt|ve\b|ha\b|hi|puede))|\b(?:bright|dark).?field"
"""Names of signals; in Spanish "se" is a pronoun."""
_CLASSES = (
    r"(?:particles?|nano ?particles?|nano ?wires?|wires?|fib(?:re|er)s?|powders?|films?|coatings?|sponges?|metals?|"
    r"ceramics?|cells?|tips?|alloys?|polymers?|steels?|crystals?|devices?|mems|wafer)"
)
_SPECIFIC = (
    *("size", "count", "porosity", "defects", "scale", "instrument", "orientation", "arrangement", "surface", "shape"),
    *("quality", "compare", "width", "coverage", "composition", "thickness"),
)
INTENTS: Mapping[str, Intent] = {
    "count": Intent(
        r"wie ?viele|\bzähl|\bcombien|\bcuánt[ao]s|\bquant[ie]\b|\banzahl|\btally|\bn[ro]s?\.? of\b|"
        r"how many(?! (?:of (?:the )?)?(?:nm|nanomet|micromet|microns?\b|kv|kilo|pixels?|people|times|k?v\b|mm|wt|"
        r"weight|vol|percent|%))|"
        r"how much (?:particles|pores)|"
        r"number of|numbers?\b(?= and)|total number|\bcount(?:s|ed|ing)?\b|numerous|quantity of|"
        r"(?:more|fewer|less) than \w+ (?:particles?|structures?|objects?|pores|bodies|grains|cells|wires)|"
        r"(?:more|most|fewer|fewest) (?:particles|structures|objects|bodies|grains|pores)\b|"
        r"(?:only|just) one (?:object|particle|structure|body)",
        ("count",),
        ("scale",),
    ),
    "size": Intent(
        r"how (?:large|big|small|long)\b|\bsizes?\b|\bdiameters?\b|(?<!critical )\bdimensions?\b|"
        r"^(?!.*(?:working distance|voltage|magnification|pixel size|field)).*"
        r"\b(?:larg|small|bigg|fin|coars)(?:er|est)\b|"
        r"\bd ?(?:10|50|90)\b|nano-?sized|\bacross\b|(?:what|which) (?:is the )?length|length of|"
        r"(?:nm|microns?|nanomet\w+) (?:is|are) (?:one|a|the|each) (?!pixel)|"
        r"^(?!.*line ?width).*\bmeasure (?:it|them|these|those|the (?:particles|structures|bodies|spheres|"
        r"grains|pores))|"
        r"\b(?:mono|poly)-?dispers|(?:average|mean) grain|(?:wie|comment|que|quanto) gro(?:ß|ss)|\bgröße|\btaille|"
        r"\btamaño|\bdimensioni",
        (
            *("mean_diameter", "d10_diameter", "d90_diameter", "area_weighted_diameter", "grain_size", "fibre_width"),
            *("mean_chord_of_the_bright_phase", "mean_chord_of_the_dark_phase"),
        ),
        ("scale",),
    ),
    "thickness": Intent(
        r"(?:layers?|films?|coatings?|shells?|membranes?|scale|oxide)\b.*\bthick|schichtdicke|\bdick\w* .*schicht|"
        r"(?:layer|film|coating|shell|oxide)s?(?:'s)? height|height of the (?:layer|film|coating)|"
        r"schicht\w* .*\bdick|épaisseur|\bespesor|\bspessore|"
        r"\bthick\w*\b.*\b(?:layers?|films?|coatings?|shells?|membranes?|oxide)\b"
    ),
    "width": Intent(
        r"how wide(?! is the (?:spread|distribution))|\b(?:line ?)?widths?\b|\bbreit|\blargeur|\banch[oa]|"
        r"\bthick(?:ness|er|est)?\b|\b(?:wid|thinn|narrow)(?:er|est)\b|\bcds?\b|"
        r"critical dimensions?",
        ("line_width", "fibre_width", "fibre_width_spread", "wall_thickness"),
        ("size", "scale", "thickness"),
    ),
    "porosity": Intent(
        r"poros|porous|\bpores?\b|\bvoids?\b|\bdense\b|\bfoam|\bspong(?:y|e-?like)|empty|permeab|\bholes?\b|"
        r"\blöcher|\btrous\b|\bdicht\b|hohlr[aä]um|\bporen\b|\bporös",
        ("porosity",),
        ("size", "count", "shape"),
    ),
    "coverage": Intent(
        r"\bcover(?:s|ed|age)?\b|(?:area|volume|phase) fraction|(?:fraction|share|percentage) of (?!void|pore)|"
        r"how much of (?:the|this|it)|\bbare\b|\bcontinuous|\brecouv|\bcouvert|\bbedeck|\bcubiert|\bflächenanteil",
        ("coverage",),
        ("size", "porosity"),
    ),
    "composition": Intent(
        r"\belements?\b|chemical|atomic number|\bmineral\b|\bwt\b|weight percent|"
        r"composition|(?:made|consist\w*) (?:out )?of|\bcrystallin|amorphous|"
        r"\boxid(?:e|ised|ized)\b|\bstoichiometr|\bbesteh\w* .*\baus\b|\baus\b.* besteh|\baus was besteh|"
        r"\bzusammensetzung|de qué material|éléments?\b|\bhech[oa]s? de|"
        rf"(?:is|are) {_THIS} (?:an? )?{_ELEMENTS}\b|\b(?:any|contains?|traces of) {_ELEMENTS}\b",
        (),
        ("thickness",),
    ),
    "defects": Intent(
        r"def+ects?\b|\bcrack|scratch|damage|contamin|debris|\bdirt|\bdust\b|foreign|wrong|unusual|anomal|"
        r"broken|intact|"
        r"\bflaw|\bfaults?\b|delamin|pinhole|art[ei]facts?|inspection|\bclean\b|good or (?:a )?bad|"
        r"\bbridging|should ?n[o']t be (?:there|here)|excursion|\bresidues?\b|\bgrietas?|impurezas|\brisse?\b|"
        r"defekt|fissure|défaut|kratzer|verunreinig",
        (),
        ("coverage",),
    ),
    "scale": Intent(
        r"\bpixels?\b|\bscale\b|calibrat|\bnm ?(?:/|per) ?p|sampling|(?:measure|give|given)\b.* lengths?|"
        r"lengths? be given|"
        rf"nanomet\w+ per|\bresolution\b|\bresolve\b|maßstab|massstab|échelle|\bescala|pixelgrö|{_FIELD}",
        ("pixel_size",),
    ),
    "instrument": Intent(
        r"voltage|\bkvs?\b|kilovolt|beam energy|\bhv\b|\beht\b|spannung|tensi[óo]n d|detector|"
        rf"{_SE}|backscatter|"
        r"secondary (?:electron|or)|"
        r"in-?lens|signal was|(?:which|what) signal|microscope|instrument|manufactur(?!ing)|vendor|"
        r"(?:which|what|the) machine\b|(?:which|what) (?:tool|sem|tem)\b|"
        r"\b[st]em\b.* or .*\b[st]em\b|magnif|\bmag\b|\bzoom|working distance|\bwd\b|^(?:and )?when (?:was|"
        r"were) (?:it|this|that|the|they|these)\b|\bdate\b|"
        r"(?:what|which) day (?:was|were)|imaging conditions|\bsettings\b|acquisition|parameters|meta ?data|"
        r"file header|"
        r"beschleunigung|vergrößerung|mikroskop|grossissement|voltaje|aumentos?\b|detektor|détecteur|"
        r"how (?:was|were) (?:it|this|they|the|these)\b.*(?:imaged|taken|recorded|acquired)|how (?:was|is) it imaged",
        ("voltage", "detector", "microscope", "magnification", "working_distance", "date"),
    ),
    "orientation": Intent(
        r"orient|direction|\balign|which way|\bangles?\b|isotrop|horizontal|vertical|\bparallel|\btilted|"
        r"same way|rolling|richtung|ausgerichtet|\borientad|\borienté",
        ("orientation", "orientation_spread", "anisotropy"),
    ),
    "arrangement": Intent(
        r"arrang|\border(?:ed)?\b|distribut|homogen|\bevenly|\bregular|\brandomly|\blattice|\bgrid\b|pattern|"
        r"periodic|"
        r"\bperiods?\b|\bpitch|spacing|far apart|how (?:far|close)|distances?\b|neighbo|cluster|agglom|isolated|"
        r"\btouch|"
        r"\bclump|agglomér|aglomer|\bdispersed\b|\babst[aä]nd|anordnung|espacement|\bdistancia|overlap|"
        r"\bseparate\b|\bpacked|"
        r"\blayer(?:s|ed)\b|network",
        ("arrangement", "period", "nearest_neighbour"),
        ("size", "scale", "porosity", "defects", "orientation", "shape", "instrument", "count", "thickness"),
    ),
    "surface": Intent(
        r"surface|\bsmooth|\brough(?:ness)?\b|texture|\bflat\b|\bbumpy|\bgrain(?:y|ular)|\bgranular|wrinkl|"
        r"striat|polish|"
        r"\betched|"
        r"facet|oberfläche|\brau(?:h|e|er|es)?\b|\bglatt|rugueu|\blisse|\blisa\b|rugos|\bfinish\b|\bler\b",
        ("surface", "line_edge_roughness"),
        ("size", "count", "porosity", "defects", "orientation", "shape", "coverage"),
    ),
    "shape": Intent(
        r"\bshape|\bround(?:ness)?\b|\bspher|circular|elongat|aspect ratio|\brods?\b|rod-|needle|plate|"
        r"flakes?\b|\bcubes?\b|"
        r"\bforme?\b(?= (?:und|der|des|et|ont|have))|\bquelle forme|\brund(?:e|er)?\b|\brond(?:e|es|s)?\b|"
        r"\bredond|\bforma\b|^(?!.*lattice).*\b(?:square|hexagon)|"
        r"cub(?:ic|oid)|irregular|corners|\bstraight|\bcurved|\bbent\b|\bform (?:do|does|of)|geometry|"
        r"(?:particle|their|its) morphology|^(?:are|is) (?:they|it|these) (?:long|thin)",
        ("shape", "aspect_ratio", "circularity"),
        ("size", "count"),
    ),
    "quality": Intent(
        r"\bsharp(?!.*corner)|focus|\bblur|astigmat|\bnois|signal.to.noise|\bsnr\b|\bcontrast\b(?! the (?:first|"
        r"second))|"
        r"^(?!.*(?:fraction|share|percent|how much|atomic)).*\bbright(?:ness)?\b"
        r"(?!.?field| (?:area|phase|region|part|grain|particle|body|spot|one|(?!is\b|was\b)\w+s)\b)|"
        r"(?:mean|average) gr[ea]y|"
        r"belichtet|\b(?:un)?scharf|rausch|\bflou|\bnet(?:te)?\b|borros|enfoc|too dark|expos|saturat|charging|"
        r"quality|"
        rf"{_PICTURE} (?:any )?good\b|"
        rf"good (?:is )?(?:this |the |a )?{_PICTURE}|good enough|any good|usable|used for (?:an )?analysis|"
        rf"(?:take|repeat|redo) .*(?:again|{_PICTURE})|improve|better {_PICTURE}|gr[ea]y level",
        ("sharpness", "contrast", "noise"),
    ),
    "compare": Intent(
        r"compar|\bidentical|vergleich|ähnlich|\bletzten? (?:bild|probe)|ressembl|than (?:in )?(?:the )?(?:other|last|"
        r"previous)|vorherig|\bprevious (?:one|image|picture|upload|sample)|\bdiffer|\bsame\b|similar|"
        r"\bversus\b|\bvs\b|in common|common to|\bchanged?\b|side by side|"
        rf"which (?:of (?:the )?two |one |{_PICTURE} )?is better|contrast the (?:first|second)",
        (),
        ("size", "shape", "orientation", "quality", "arrangement", "coverage"),
    ),
    "describe": Intent(
        r"descri|\bcaption|summar|tell (?:me )?(?:more|about|something|everything)|what can (?:you|one) (?:tell|say)|"
        r"what (?:do you|is) know|explain|talk me|walk me|overview|report|sentences?\b|analy[sz]e|features|"
        r"noticeable|"
        r"stands out|interpret|characteri[sz]e|say something|details?\b|^go on|what else|anything else|^more\b|"
        r"interesting|\bfasse?\b.*\bzusammen|\brésum|\bresum|in a nutshell|\btldr\b|\bbeschreib|\bdécri|\bdescrivi",
        (),
        _SPECIFIC,
    ),
    "what": Intent(
        rf"^(?:is|are) there (?:an? |any |some )?{_CLASSES}(?: (?:here|visible|present|"
        rf"in (?:it|(?:this |the )?{_PICTURE})))*\W*$|"
        rf"what(?:'?s| is| are| was| were| might| could)? {_THIS}\b|what(?:'?s| is) (?:shown|in (?:the|this)|"
        rf"the sample)|"
        rf"what am i|what (?:do|did) (?:we|you|i) (?:see|image)|what have (?:i|we)|what can (?:you |"
        rf"one )?(?:be )?see|"
        rf"what (?:does|do) (?:this|the|these)\b.* show|(?:kind|sort|type)s? (?:of|is|are|do)|(?:what|"
        rf"which) (?:class|material"
        rf"|category|sample|family)|class\b|classify|identif|recogni[sz]|name (?:the material|what)|\bguess|"
        rf"what .* objects|"
        rf"this is\b|what {_THIS} (?:is|are|could)|could {_THIS} be|belong|what i have|"
        rf"\b(?:is|are|does|look\w*|say) (?!there\b|it contain|the \w+ of\b|(?:the|their) {_CLASSES} \w).*"
        rf"\b{_CLASSES}\b|"
        rf"what (?:is|are) .*{_THIS}$|what (?:is|are) .* things|"
        r"(?:art|sorte) (?:von )?(?:probe|material)|(?:type|sorte) d'échantillon|tipo de (?:muestra|material)|"
        r"c'est quoi|categor|was (?:ist|sind|sieht|siehst|zeigt)\b|qu'est|que (?:es|ve|muestra|montre|voit)|"
        r"qué (?:es|ve|muestra)|"
        r"(?:che )?cos(?:a |')(?:è|e|si)|これ|何|这是|這是|이것",
        ("class",),
        (*_SPECIFIC, "describe"),
    ),
}
ALWAYS = re.compile(
    rf"are (?:these|those|they) {_CLASSES} or|"
    rf"what(?:'s| is| are) {_THIS}\b(?! (?:size|shape|surface|scale|made|"
    rf"arrangement|orientation|period))|"
    rf"descri(?:be|ption)(?: of)? (?:the |this )?(?:{_PICTURE}|it$|sample$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Limit:
    """Something that people ask for, and that no quantity tells."""

    words: str
    """How a clause asks for it: a regular expression."""
    silences: tuple[str, ...] = ()
    """Intents of the same clause that its words only seem to ask for."""


LIMITS: Mapping[str, Limit] = {
    "reason": Limit(
        r"^(?:and |but |so )?(?:why|how come|warum|wieso|weshalb|pourquoi|por qué|perché)\b|"
        r"what (?:causes|caused)\b|(?:reason|cause) (?:for|of)\b"
    ),
    "advice": Limit(
        r"\brecommend|\badvi[sc]e|\bsuit(?:able|ed) (?:for|to|as)|\bfit for\b|what should (?:i|we) (?:change|use|set)|"
        r"should (?:i|we) (?:use|choose|change|set|raise|increase|lower|reduce)|empf[eioa]h|\bgeeignet|"
        r"\bconseill|\brecom[ie]+nd|\bsoll(?:te)? ich\b",
        tuple(INTENTS),
    ),
    "region": Limit(
        r"\b(?:upper|lower|top|bottom|left|right)(?:[- ](?:left|right))?(?:[- ]hand)? "
        r"(?:corner|half|part|side|quarter|quadrant|third|edge|area|region)|"
        r"\b(?:in|at|near) the (?:very )?(?:cent(?:er|re)|middle|corner|background|foreground|left|right|top|bottom)\b|"
        r"\b(?:oben|unten) (?:links|rechts)|(?:linke|rechte|obere|untere)[nrsm]? (?:\w+ )?(?:ecke|hälfte|bereich|rand)|"
        r"\bedge of (?!the (?:particles|lines|wires|bodies|grains|pores))|"
        r"en (?:haut|bas) à|\besquina|\bcoin (?:sup|inf)|in der (?:mitte|ecke)|\beverywhere\b|\bthroughout\b|"
        r"same population|\b(?:edges?|rims?|interiors?)\b.*\b(?:bright|dark)er|"
        r"(?:bright|dark)er\b.*\b(?:edges?|interior)|"
        r"\bwhere (?:is|are) (?:it|they|those|these|the)\b|^(?:is|are) (?:it|this|that|they|these) (?:uniform|homogen)",
        ("compare",),
    ),
    "subset": Limit(
        r"\b(?:small|tiny|big|large|bright|dark|black|white|gr[ea]y|round|long)(?: \w+)? ones\b|"
        r"\bpopulations?\b|\binside (?:of )?(?:the|each|a|one)\b",
        ("count", "size", "quality", "porosity"),
    ),
    "connected": Limit(r"\b(?:inter)?connect(?:s|ed|ivity)?\b|\bpercolat", tuple(INTENTS)),
    "layers": Limit(
        r"how many (?:\w+ ){0,2}(?:layers|phases)\b|"
        r"\bwhich (?:one |layer |phase )?(?:is |is the |are )?(?:the )?(?:bright|dark)est",
        ("count", "quality"),
    ),
    "beam": Limit(r"\b(?:electron|ion)s? or (?:with )?(?:electron|ion)s?\b|(?:imaged|taken|made) (?:with|by) ions\b"),
    "extreme": Limit(
        r"^(?!.*distance).*\b(?:larg|bigg|small|long|short|thick|thinn|wid)est\b|\b(?:größte|kleinste|dickste|dünnste|längste)|"
        r"\bplus (?:grande?|grosse?|petite?)s?\b|\bmás (?:grande|pequeñ)"
    ),
    "every": Limit(
        r"\b(?:are|is) (?:they|these|those|it|the \w+) all\b|^(?:are|is) all\b|"
        r"\b(?:all|every|each) (?:of (?:them|these) )?(?:the )?\w+ (?:is|are) (?:round|spher|the same)",
    ),
    "length": Limit(
        r"how long (?:is|are) (?!.*scale ?bar)|\blengths? of (?!.*scale ?bar)(?:the |these |those |a )?"
        r"(?:fib|wire|nano|rod|needle|crack|tube|it\b|them|particles)|wie lang\b(?!.*maßstab)"
    ),
    "scale_bar": Limit(
        r"\b(?:what|how|length|value|size)\b.* scale ?bar\b|^scale ?bar$|\bis the scale ?bar\b|"
        r"scale ?bar(?:'s)? (?:length|size|value)|"
        r"maßstabsbalken|barre d'échelle|barra de escala"
    ),
    "pixel_count": Limit(
        r"how many (?:mega)?pixels (?:does|do|has|have|are in|in)\b|number of pixels\b(?! per)|\bbit depth|"
        r"how many bits|\b(?:8|12|16|32)[- ]?bit\b"
    ),
    "setting": Limit(
        r"\b(?:stage|sample|specimen|holder)\b.*\btilt|\btilt(?:ed)?\b.*\b(?:stage|sample|specimen|holder)\b|"
        r"(?:beam|probe|emission) current|strahlstrom|\bspot size|\bdwell|scan(?:ning)? (?:speed|rate|time)|"
        r"\bapertures?\b|exposure time|chamber pressure",
        ("orientation", "size", "quality", "scale"),
    ),
    "body_area": Limit(
        r"\b(?:average|mean|median|typical|individual|single)\b.*"
        r"\bareas?\b(?! (?:fraction|share|percent)|[ -]weighted)|"
        r"\bareas? of (?:a|one|each|every|single|individual|the individual) \w|\b(?:cell|grain|particle|pore) areas?\b"
    ),
    "density": Limit(r"\bper (?:unit|square|area|[µu]m|mm|cm|nm|field|frame)\b|(?:number|areal) density"),
    "defect_size": Limit(
        r"(?:how (?:large|big|long|wide|deep|small)|sizes?|widths?|lengths?|depths?|largest|longest|widest)\b.*"
        r"\b(?:cracks?|scratch\w*|defects?|flaws?)\b",
        ("size", "width"),
    ),
    "profile": Limit(
        r"(?:side ?walls?|profile|flanks?)\b.*\b(?:vertical|angle|steep|undercut|tilt)|"
        r"\b(?:angle|slope) of the (?:side ?)?walls?|\bundercut",
        ("orientation", "size"),
    ),
    "astigmatism": Limit(r"astigmat"),
    "charging": Limit(r"\bcharging\b|\bcharged\b|aufladung|saturat|overexpos|\bclipp"),
}
"""What nothing here tells, though people ask for it."""


def limits_of(question: str) -> list[str]:
    """What a question asks for that nothing here tells, in the order of `LIMITS`."""
    clauses = list(filter(None, _CLAUSE.split(spelled(question))))
    return [name for name, limit in LIMITS.items() if any(re.search(limit.words, clause) for clause in clauses)]


_GREETING = re.compile(
    r"(?:hello|hi|hey|howdy|greetings|good (?:morning|afternoon|evening|day)|nice to meet|how are you|how do you do|"
    r"what'?s up|hallo|guten|servus|moin|gr(?:ü|ue|u)(?:ß|ss|e)|bonjour|bonsoir|salut|hola|¡hola|buen[oa]s|ciao|"
    r"buongiorno|"
    r"buonasera|ol[áa]|bo[am] (?:dia|tarde|noite)|hej|hei|god (?:dag|morgen)|goede|dag|cze[śs][ćc]|dzie[ńn]|"
    r"ahoj|dobr[ýy]|"
    r"merhaba|selam"
    r")(?!\w{3})|привет|здравств|добр|こんにち|こんばん|おはよう|はじめ|どうも|你好|您好|안녕|नमस्ते|مرحبا|السلام|שלום",
    re.IGNORECASE,
)
"""How people say hello: at the start of a short text that asks for nothing else."""
_THANKS = re.compile(
    r"(?:thanks?|thx|thank you|danke|vielen dank|merci|gracias|grazie|obrigad|bye|goodbye|see you|"
    r"tsch(?:ü|ue)ss)(?!\w{3})|"
    r"ありがとう|谢谢|"
    r"(?:(?:ok(?:ay)?|yes|yep|no|great|nice|cool|super|perfect|fine|good|got it|i see|understood|cheers|thanks|bye)"
    r"[ ,.!]*)+$",
    re.IGNORECASE,
)
"""How people end a conversation, or say that they have read the answer."""
_HELP = re.compile(
    r"\bmaemi\b|\b(?:what|which|who) (?:can|may|could|do|are|can't|model|language|languages|made|"
    r"questions)\b.*\b(?:you|i|me)\b|"
    r"what should i (?:do|ask|try)|which (?:model|questions)|"
    r"what now|^(?:please )?help\b|\bhelp me|need help|are you\b|do you (?:speak|send|need|make|measure|work|"
    r"know that)|"
    r"can you (?:speak|read|help)|can i (?:trust|upload|ask|use)|how (?:do|does|can|could) (?:you|this|i|"
    r"it) (?:work|use|start|"
    r"know|measure|begin)|how do you|where do (?:i|your)|how (?:sure|certain|reliable|accurate)|\bmy (?:data|"
    r"pictures?|images?|files?)"
    r"\b|(?:file )?formats?|your (?:limits|name|numbers|answers)|were you|"
    r"(?:sort|kind|type)s? of questions|qué puedes|was kannst|kannst du|sprichst du|parle[sz]|hablas|que peux|"
    r"which questions|questions can|internet|"
    r"who made you",
    re.IGNORECASE,
)
"""How people ask about the assistant itself."""
_SHOWN = re.compile(
    rf"\bsee\b|categor|\bclass\b|{_PICTURE}|\bsample\b|about (?:it|them)\b|i have|what(?:'s| is|"
    rf" are) {_THIS}\b",
    re.IGNORECASE,
)
"""Words by which a question to the assistant is about a picture after all."""
_WORDS = frozenset(
    """
    about accelerating acquisition aligned alignment analyse angle anisotropic anisotropy arranged arrangement
    artefacts aspect average bigger blurred blurry brightness calibrated calibration caption charging chemical
    circular circularity class clean clustered compare comparison composition contamination contrast count cracked
    cracks damage defects dense describe description detector diameter diameters difference differences different
    dimensions direction distance distribution elongated evenly exposure fibres fields focus grains height
    homogeneous horizontal identify image images instrument isolated isotropic kind large larger layered length
    looking magnification manufacturer many material mean measure measured metadata microscope morphology
    nanowires neighbour noise noisy number ordered orientation overlap parallel particle particles pattern period
    periodic picture pictures pixel pixels pores porosity porous preferred quality ratio resolution rough
    roughness sample scale scratches settings shape shaped sharp sharpness similar size sizes smaller smooth
    spacing spheres spherical structure structures surface texture there these thickness this those vertical
    voltage what where which width working wrinkled
    """.split()
)
"""What a misspelt word of a question may have been."""
_CLAUSE = re.compile(r"\s*(?:[,;?!]|\.(?!\d)|\band\b|\bor\b(?= (?:are|is|do|does|which|what|how)\b))\s*")
_WORD = re.compile(r"[a-z]+")


def intents_of(question: str) -> list[str]:
    """What a question asks for, in the order of `INTENTS`; where it is about no picture "greeting" or "help".

    Empty where none of them is understood.
    """
    text = spelled(question)
    found: set[str] = set()
    beside: set[str] = set()  # asked for in clauses that are not about the assistant
    for clause in filter(None, _CLAUSE.split(text)):
        named = {name for name, intent in INTENTS.items() if re.search(intent.words, clause)}
        always = {"what", "describe"} if ALWAYS.search(clause) else set()
        asked = {name for name in named if name in always or not named.intersection(INTENTS[name].yields_to)}
        asked -= {name for limit in limits_of(clause) for name in LIMITS[limit].silences}
        found |= asked
        beside |= set() if _HELP.search(clause) else asked
    bare = text.strip(" .!?¡¿")
    if (_GREETING.match(bare) or _THANKS.match(bare)) and not found - {"what"} and len(bare.split()) <= 8:
        return ["greeting"]
    shown = found & {"what", "describe"} and _SHOWN.search(text)
    only = found <= {"what", "describe", "instrument", "compare", "size"} and not beside & {"instrument", "size"}
    if not shown and only and _HELP.search(text):
        return ["help"]
    return [name for name in INTENTS if name in found]


def same_asked(question: str) -> tuple[str, ...]:
    """The quantities in which a question asks whether pictures agree; none where it asks for no certain ones."""
    text = spelled(question)
    if not _SAME.search(text):
        return ()
    of_size = r"(?<!pixel )(?<!spot )\bsizes?\b|equally (?:large|big|small)|gleich gro"
    sized = INTENTS["size"].facts if re.search(of_size, text) else ()
    named = [name for name, quantity in QUANTITIES.items() if re.search(_named(name, quantity.words), text)]
    if re.search(r"equally (?:thick|wide|thin)|gleich (?:dick|breit)|same (?:width|thickness)", text):
        named = named or ["fibre_width", "line_width"]
    return tuple(dict.fromkeys((*named, *sized)))


def unit_asked(question: str) -> str | None:
    """The unit in which a question asks for lengths: "nm", "um" or "mm"."""
    found = _UNIT.search(question.lower())
    return next((unit for unit, words in _UNITS.items() if found and re.fullmatch(words, found[1])), None)


def follows_on(question: str) -> bool:
    """Whether a question only asks for the unit of what was asked before: "and in micrometres?"."""
    rest = _UNIT.sub(" ", question.lower())
    return unit_asked(question) is not None and not re.sub(
        r"\b(?:and|also|please|what|is|it|are|they|that|this|be|und|bitte|et|y|now)\b|\W", "", rest
    )


def named_bodies(question: str) -> Literal["bright", "dark"] | None:
    """Whether a question names bodies that are openings or dark, or such that are bright."""
    text = spelled(question)
    dark = re.search(INTENTS["porosity"].words, text) or re.search(rf"\bdark {_BODIES}", text)
    bright = re.search(rf"\b(?:bright|white) {_BODIES}", text)
    return None if bool(dark) == bool(bright) else "dark" if dark else "bright"


def tone_asked(question: str) -> bool:
    """Whether a question asks if bodies are bright or dark."""
    return _TONE.search(spelled(question)) is not None


_BODIES = r"(?:spots?|dots?|bodies|particles?|grains?|inclusions?|precipitates?|objects?)\b"
_TONE = re.compile(
    r"\b(?:bright|light|white)(?:er)? or (?:dark|black)(?:er)?\b(?!.?field)|"
    r"\b(?:dark|black)(?:er)? or (?:bright|light|white)(?:er)?\b(?!.?field)|"
    rf"\bare (?:the |these |those |they )?(?:{_BODIES} )?(?:bright|dark)\W*$|"
    r"\bhell(?:er)? oder dunk(?:el|ler)|\bdunk(?:el|ler) oder hell"
)
_UNITS = {
    "nm": r"nm|nano ?met(?:er|re)s?|nanomètres?|nanómetros?",
    "um": r"[uµμ]m|microns?|micro ?met(?:er|re)s?|mikrometer|micromètres?|micrómetros?|micras?",
    "mm": r"mm|milli ?met(?:er|re)s?|millimètres?|milímetros?",
    "angstrom": r"å|[aå]ngstr[oö]ms?",
}
_UNIT = re.compile(rf"\b(?:in|en) ({'|'.join(_UNITS.values())})\b(?! (?:wide|square))")
_SAME = re.compile(
    r"\bsame\b|\bidentical|\bequal(?:ly)?\b|\balike\b|\bgleich\w*|\bdieselbe\w*|\bselbe[nrsm]?\b|\bmême|\bmism[oa]s?\b|"
    r"\bdiffer(?:s|ent)?\b",
    re.IGNORECASE,
)


def _named(name: str, words: str) -> str:
    return _ALSO_NAMED.get(name, rf"\b(?:{words})\b")


def is_thanks(question: str) -> bool:
    """Whether a greeting is rather thanks, goodbye or a nod."""
    return bool(_THANKS.match(spelled(question).strip(" .!?¡¿")))


def asked_for(question: str) -> list[str]:
    """The quantities that a question asks for; none for an open question."""
    return list(dict.fromkeys(name for intent in intents_of(question) for name in facts_asked(intent, question)))


def facts_asked(intent: str, question: str) -> tuple[str, ...]:
    """The quantities of an intent that a question names itself, such as the voltage; all where it names none."""
    if intent not in INTENTS:
        return ()
    text, facts = spelled(question), INTENTS[intent].facts
    named = tuple(
        name
        for name in (*facts, *_CLOSE.get(intent, ()))
        if re.search(_named(name, QUANTITIES[name].words), text, re.IGNORECASE)
    )
    return named or facts


_CLOSE = {"size": ("median_diameter",), "quality": ("mean_grey",), "scale": ("field_width",)}
"""Quantities that answer an intent only where they are named."""
_ALSO_NAMED = {
    "class": r"\bclass|categor|(?:kind|type|sort)s? of|klasse|\bclase\b|\bart (?:von )?probe",
    "voltage": r"voltage|spannung|voltaje|tensi[óo]n|\bkvs?\b|kilovolt|beam energy|\bhv\b|\beht\b",
    "detector": rf"detector|detektor|détecteur|{_SE}|backscatter|secondary|in-?lens|signal",
    "microscope": r"mikroskop|microscope(?!'?s? (?:settings|param))|instrument|manufactur(?!ing)|vendor|"
    r"(?:which|what|the) machine\b|\btool\b|\bsem\b|\btem\b",
    "magnification": r"magnif|vergrößerung|grossissement|aumentos?\b|\bmag\b|\bzoom",
    "date": r"\bwhen\b|\bdate\b|\bday\b",
    "field_width": _FIELD,
    "pixel_size": r"pixel ?size|(?:one|each|a|per|ein) pixel\b|\bpixel (?:is|are|measures?|groß)|pixelgrö|"
    r"\bnm ?(?:/|per) ?p|\bscale\b(?!.?bar)",
    "mean_grey": r"gr[ea]y level|(?:bright|dark)(?!.?field|est)|expos|gr[ea]y value|(?:mean|average) gr[ea]y",
    "sharpness": r"sharp|focus|blur|astigmat",
    "noise": r"nois|\bsnr\b",
    "line_edge_roughness": r"edge roughness|\bler\b|edges",
    "surface": r"surface|smooth|\brough\b|roughness of|texture",
    "aspect_ratio": r"aspect ratio|elongat",
    "circularity": r"circularity|how round|roundness",
    "nearest_neighbour": r"far apart|distances?\b|spacing|neighbo|how (?:far|close)",
    "period": r"period|pitch|repeat",
    "anisotropy": r"isotrop",
    "median_diameter": r"median|\bd ?50\b",
    "d10_diameter": r"\bd ?10\b|smallest|dispers|distribution|deviation",
    "d90_diameter": r"\bd ?90\b|largest|biggest|dispers|distribution|deviation",
    "grain_size": r"grain",
    "fibre_width": r"\bfib(?:re|er)s?\b|\bwires?\b",
    "wall_thickness": r"\bwalls?\b",
    "line_width": r"\blines?\b|\bcds?\b|critical",
}
"""How a question names a quantity, where that is not how an answer does."""


@lru_cache(maxsize=4096)
def spelled(question: str) -> str:
    """A question in small letters, with words that are nearly one that questions use put right."""
    text = " ".join(question.lower().replace("’", "'").replace("tl;dr", "tldr").split())
    return _WORD.sub(lambda match: _nearest(_TYPOS.get(match[0], match[0])), text)


def _nearest(word: str) -> str:
    if len(word) < 4 or word in _WORDS or word.rstrip("s") in _WORDS or word in _NEAR_BUT_RIGHT:
        return word
    near = get_close_matches(word, _WORDS, n=1, cutoff=0.75 if sorted(word) in _LETTERS else 0.84)
    return near[0] if near and near[0][0] == word[0] else word


_LETTERS = [sorted(word) for word in _WORDS]
_TYPOS = {
    "hwo": "how",
    "teh": "the",
    "waht": "what",
    "wat": "what",
    "wich": "which",
    "wht": "what",
    "pls": "please",
    "u": "you",
    "sise": "size",
    "hieght": "height",
    "thikness": "thickness",
    "hw": "how",
    "mny": "many",
}
_NEAR_BUT_RIGHT = frozenset(
    """
    aligning analyze brightest calibrate count counted counting country counts cover covered covering covers
    darkest described describes detectors directional directions distances distributed fiber fibers field fields
    focused form forms from grain granular ground heights homogeneity identity imaged images isotropy kinds large
    largest largeur layer layers length lengths look looks machine marks material materials meaning means
    measurement measurements measures measuring member minutes mirror neighbor neighbors noises number numbers
    order ordered ordering orders orient oriented particular past pattern patterns pictured place please point
    pore power prefer present print quantity rate rates ratios rough roughly round sample samples scaled scales
    scratch scratched shape shaped share shares sharper shown shows similarly simple since size sized smooth sort
    space spaces sphere spots striated strong structural surfaces tell tested text texts than that their them then
    there they thick thin thing things think three time times touch touching type types view visible void voids
    wafer warm were when where while whole wide will with word words work works world would write your
    """.split()
)
"""Words that are near one of those and mean another thing."""
