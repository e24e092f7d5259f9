"""What the questions of ``live.questions`` are made of: parts of invented names, and common knowledge."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


def _pairs(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (pair.partition("=") for pair in text.split(","))}


FIRST = _words(
    "Ada Bo Cleo Dov Edda Finn Greta Hugo Ines Jarl Kaia Leif Mira Nils Oda Pavel Rhea Sten Tove Ugo Vera Wim"
)
START = _words("Bal Dor Fen Gar Hol Kel Lun Mar Nor Pel Quor Ras Sel Tam Ul Vel Wes Yor Zan Brun Cor Drav Esk")
PLACE = _words("bury dale ford gate ham holm mere mouth stead stow ton wick")
FAMILY = _words("berg dahl lund mark quist rup sen vik wall zin")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COLOURS = _words("red blue green white black yellow brown grey")
WORDS = _words(
    "basket blanket bottle bridge camel candle carpet castle copper corner curtain desert dragon "
    "engine falcon feather finger forest garden guitar hammer harbour helmet hunter jacket kettle kitchen ladder "
    "lantern lemon marble market meadow mirror monkey mountain needle parrot pepper pencil pillow planet pocket "
    "rabbit ribbon river rocket saddle shadow shoulder silver spider summer tiger tunnel turtle velvet "
    "village window winter wizard willow"
)
SYMBOLS = _pairs(
    "hydrogen=H,helium=He,lithium=Li,carbon=C,nitrogen=N,oxygen=O,fluorine=F,neon=Ne,sodium=Na,magnesium=Mg,"
    "aluminium=Al,silicon=Si,phosphorus=P,sulfur=S,chlorine=Cl,argon=Ar,potassium=K,calcium=Ca,titanium=Ti,"
    "chromium=Cr,manganese=Mn,iron=Fe,cobalt=Co,nickel=Ni,copper=Cu,zinc=Zn,arsenic=As,bromine=Br,krypton=Kr,"
    "silver=Ag,cadmium=Cd,tin=Sn,iodine=I,xenon=Xe,barium=Ba,tungsten=W,platinum=Pt,gold=Au,mercury=Hg,lead=Pb,"
    "bismuth=Bi,radium=Ra,thorium=Th,uranium=U,plutonium=Pu,gallium=Ga,germanium=Ge,selenium=Se,"
    "strontium=Sr,tellurium=Te"
)
CAPITALS = _pairs(
    "Austria=Vienna,Belgium=Brussels,Brazil=Brasilia,Bulgaria=Sofia,Canada=Ottawa,Chile=Santiago,China=Beijing,"
    "Colombia=Bogota,Croatia=Zagreb,Cuba=Havana,Denmark=Copenhagen,Ecuador=Quito,Egypt=Cairo,Estonia=Tallinn,"
    "Ethiopia=Addis Ababa,Finland=Helsinki,France=Paris,Germany=Berlin,Ghana=Accra,Greece=Athens,Hungary=Budapest,"
    "Iceland=Reykjavik,India=New Delhi,Indonesia=Jakarta,Iran=Tehran,Iraq=Baghdad,Ireland=Dublin,Italy=Rome,"
    "Japan=Tokyo,Jordan=Amman,Kenya=Nairobi,Latvia=Riga,Lebanon=Beirut,Libya=Tripoli,Lithuania=Vilnius,Mali=Bamako,"
    "Morocco=Rabat,Nepal=Kathmandu,Norway=Oslo,Pakistan=Islamabad,Peru=Lima,Poland=Warsaw,Portugal=Lisbon,"
    "Romania=Bucharest,Russia=Moscow,Senegal=Dakar,Serbia=Belgrade,Slovakia=Bratislava,Slovenia=Ljubljana,"
    "South Korea=Seoul,Spain=Madrid,Sudan=Khartoum,Sweden=Stockholm,Syria=Damascus,Thailand=Bangkok,Tunisia=Tunis,"
    "Turkey=Ankara,Uganda=Kampala,Ukraine=Kyiv,Uruguay=Montevideo,Venezuela=Caracas,Vietnam=Hanoi,Zambia=Lusaka,"
    "Zimbabwe=Harare"
)
