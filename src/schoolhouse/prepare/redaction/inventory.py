"""Invented names of people, places and organisations: stems and endings, so that there are thousands and no real list.

Some of them are the names of somebody or of some place; a surrogate is told from a name by the seal of its document
(`keys`), never by the word.
"""

STEMS = (
    "Ab", "Al", "Alder", "Am", "Arl", "Ash", "Ast", "Aven", "Bar", "Bax", "Bel", "Ben", "Ber", "Birch", "Blen",
    "Bram", "Bran", "Bren", "Brin", "Bro", "Cal", "Cam", "Car", "Cas", "Cher", "Clay", "Cor", "Crom", "Dal", "Dar",
    "Den", "Dor", "Dun", "Eck", "Eld", "Ell", "Elm", "Em", "Ers", "Fal", "Far", "Fen", "Fern", "Fin", "Gal", "Gar",
    "Gil", "Glan", "Hal", "Har", "Has", "Hazel", "Hel", "Hol", "Ing", "Ir", "Kel", "Ken", "Kin", "Kirk", "Lan", "Lar",
    "Lin", "Lock", "Lor", "Mal", "Mar", "Mel", "Mer", "Mil", "Mor", "Nar", "Nel", "Nor", "Oak", "Orm", "Os", "Pem",
    "Pen", "Per", "Quin", "Ra", "Ran", "Red", "Ros", "Row", "Sal", "Sel", "Sher", "Sil", "Stan", "Sut", "Tal", "Tam",
    "Thorn", "Tor", "Tre", "Ver", "Wal", "War", "Wes", "Whit", "Wil", "Win", "Wren", "Yar",
)  # fmt: skip
ENDINGS = (
    "bourne", "bridge", "brook", "bury", "by", "caster", "cliffe", "combe", "cott", "croft", "dale", "den", "don",
    "field", "fold", "ford", "gate", "grave", "ham", "hurst", "land", "lea", "leigh", "ley", "low", "man", "mere",
    "mond", "mont", "more", "mouth", "ner", "rick", "ridge", "ring", "riss", "sby", "scott", "sey", "shaw", "side",
    "son", "stead", "stock", "stone", "stow", "ter", "thorpe", "ton", "vale", "ver", "wald", "ward", "way", "well",
    "wich", "wick", "win", "wood", "worth",
)  # fmt: skip
