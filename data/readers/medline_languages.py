"""MEDLINE's three-letter language codes (ISO 639-2, bibliographic) in the two letters of ISO 639-1."""

_CODES = """
afr af  alb sq  amh am  ara ar  arm hy  aze az  bos bs  bul bg  cat ca  chi zh  cze cs  dan da  dut nl  eng en  epo eo
est et  fin fi  fre fr  geo ka  ger de  gla gd  gre el  heb he  hin hi  hrv hr  hun hu  ice is  ind id  ita it  jpn ja
kin rw  kor ko  lat la  lav lv  lit lt  mac mk  mal ml  mao mi  may ms  nor no  per fa  pol pl  por pt  pus ps  rum ro
rus ru  san sa  slo sk  slv sl  spa es  srp sr  swe sv  tha th  tur tr  ukr uk  urd ur  vie vi  wel cy
"""
_TWO_LETTERS = dict(zip(*[iter(_CODES.split())] * 2, strict=True))


def two_letters(code: str) -> str:
    """`eng` is `en`; what has no two-letter code (`und`, `mul`) stays. Lower case."""
    code = code.strip().lower()
    return _TWO_LETTERS.get(code, code)
