"""Clinical notes of the example hospital, in the styles of several hands, with their personal data marked.

A note tells what was found and measured and what is known. It never tells the diagnosis or what was done.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from schoolhouse.get.hospital_marks import mark
from schoolhouse.get.hospital_people import HOSPITAL, SCHOOLS
from schoolhouse.get.hospital_rules import ADULT, FERTILE
from schoolhouse.get.hospital_visits import Visit

# A finding as patients say it, and as the staff writes it.
WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ear pain": (("my ear hurts", "pain in the ear"), ("ear pain", "otalgia", "earache")),
    "fever": (("I have a fever", "I feel hot"), ("fever", "febrile", "pyrexia")),
    "bulging eardrum": (("the doctor said my eardrum bulges", "my ear feels full and tight"),
                        ("bulging eardrum", "bulging tympanic membrane", "eardrum red and bulging")),
    "hearing loss": (("I can not hear well on that side", "everything sounds muffled"),
                     ("hearing loss", "reduced hearing", "muffled hearing")),
    "sore throat": (("my throat is sore", "it hurts to swallow"), ("sore throat", "painful throat", "odynophagia")),
    "swollen neck glands": (("I have lumps in my neck", "the glands in my neck are swollen"),
                            ("swollen neck glands", "tender cervical nodes", "enlarged neck glands")),
    "coated tonsils": (("there are white spots on my tonsils", "my tonsils are white"),
                       ("coated tonsils", "tonsillar exudate", "white coating of the tonsils")),
    "cough": (("I have a cough", "I keep coughing"), ("cough", "coughing", "productive cough")),
    "muscle aches": (("all my muscles ache", "my whole body aches"), ("muscle aches", "myalgia", "body aches")),
    "headache": (("my head hurts", "I have a bad headache"), ("headache", "cephalgia", "throbbing headache")),
    "tiredness": (("I am tired all the time", "I have no energy"), ("tiredness", "fatigue", "exhaustion")),
    "crackles": (("the doctor heard crackling in my chest", "my chest crackles"),
                 ("crackles", "crackles on auscultation", "crepitations")),
    "chest pain on breathing": (("it hurts when I breathe in", "there is a stab in my chest with every breath"),
                                ("chest pain on breathing", "pleuritic chest pain", "pain on inspiration")),
    "breathlessness": (("I am short of breath", "I can not catch my breath"),
                       ("breathlessness", "dyspnoea", "shortness of breath")),
    "wheeze": (("my chest whistles", "I am wheezing"), ("wheeze", "wheezing", "expiratory wheeze")),
    "chest tightness": (("my chest feels tight", "there is a band around my chest"),
                        ("chest tightness", "tight chest", "tightness of the chest")),
    "barking cough": (("the cough sounds like a dog", "it is a barking cough"),
                      ("barking cough", "seal-like cough", "barky cough")),
    "stridor": (("there is a harsh noise with every breath in", "the breath makes a crowing sound"),
                ("stridor", "inspiratory stridor", "stridor at rest")),
    "hoarse voice": (("the voice is hoarse", "the voice is nearly gone"), ("hoarse voice", "hoarseness", "dysphonia")),
    "diarrhoea": (("I have diarrhoea", "I run to the toilet all day"),
                  ("diarrhoea", "loose stools", "watery stools")),
    "vomiting": (("I keep throwing up", "I have vomited"), ("vomiting", "emesis", "repeated vomiting")),
    "abdominal cramps": (("I have cramps in my belly", "my tummy cramps"),
                         ("abdominal cramps", "cramping abdominal pain", "colicky abdomen")),
    "burning urination": (("it burns when I pee", "passing water burns"),
                          ("burning urination", "dysuria", "burning on micturition")),
    "frequent urination": (("I have to pee all the time", "I go to the toilet every half hour"),
                           ("frequent urination", "urinary frequency", "frequency of micturition")),
    "lower abdominal pain": (("it aches above my bladder", "my lower belly hurts"),
                             ("lower abdominal pain", "suprapubic pain", "suprapubic tenderness")),
    "cloudy urine": (("my urine is cloudy", "my pee looks milky"), ("cloudy urine", "turbid urine", "urine cloudy")),
    "flank pain": (("my side hurts, under the ribs at the back", "I have pain in my flank"),
                   ("flank pain", "loin pain", "costovertebral angle tenderness")),
    "skin redness": (("the skin is red", "there is a red patch that grows"),
                     ("skin redness", "erythema", "spreading erythema")),
    "skin warmth": (("the skin feels hot", "that spot is warm"), ("skin warmth", "warm skin", "warm to the touch")),
    "leg swelling": (("my leg is swollen", "my leg is puffed up"), ("leg swelling", "leg oedema", "swollen leg")),
    "light sensitivity": (("light hurts my eyes", "I have to lie in the dark"),
                          ("light sensitivity", "photophobia", "sensitive to light")),
    "visual aura": (("I saw zigzag lines before", "there were flickering spots"),
                    ("visual aura", "scintillating scotoma", "zigzag aura")),
    "right lower abdominal pain": (("my belly hurts low on the right", "it hurts down here on the right side"),
                                   ("right lower abdominal pain", "RLQ pain", "right iliac fossa pain")),
    "rebound tenderness": (("it hurts most when you let go", "every bump in the road hurt my belly"),
                           ("rebound tenderness", "rebound positive", "peritonism with rebound")),
    "hives": (("I have hives all over", "there are itchy welts on my skin"), ("hives", "urticaria", "weals")),
    "lip swelling": (("my lips are swollen", "my mouth swelled up"),
                     ("lip swelling", "angioedema of the lips", "swollen lips")),
    "faintness": (("I feel faint", "everything goes black when I stand up"),
                  ("faintness", "presyncope", "light-headed")),
    "pallor": (("people say I look pale", "I am very pale"), ("pallor", "pale conjunctivae", "pale skin")),
    "trouble lying flat": (("I can not sleep lying flat", "I need three pillows"),
                           ("trouble lying flat", "orthopnoea", "sleeps on three pillows")),
    "calf pain": (("my calf hurts", "I have a cramp in my calf that stays"),
                  ("calf pain", "painful calf", "calf tenderness")),
    "swollen surface veins": (("the veins on my leg stand out", "I can see the veins swell"),
                              ("swollen surface veins", "dilated superficial veins", "prominent leg veins")),
}  # fmt: skip


def written(findings: tuple[str, ...], draw: random.Random) -> list[str]:
    """Findings in the words of the staff."""
    return [draw.choice(WORDS[name][1]) for name in findings]


def told(findings: tuple[str, ...], draw: random.Random) -> list[str]:
    """Findings in the words of a patient."""
    return [draw.choice(WORDS[name][0]) for name in findings]


def shown_age(visit: Visit) -> str:
    """The age in words; from 90 on it is personal. Babies have months."""
    if visit.age < 1:
        months = max(1, (visit.day - visit.patient.born).days // 31)
        return f"{months}-month-old"
    return f"{mark('age', visit.age) if visit.age >= 90 else visit.age}-year-old"


def aged(visit: Visit) -> str:
    """The age in words behind its article."""
    shown = shown_age(visit)
    return f"{'an' if re.match(r'(8|11-|18-)', shown) else 'a'} {shown}"


def vitals(visit: Visit, names: tuple[str, str, str, str] = ("HR", "SpO2", "T", "BP")) -> list[str]:
    """What was measured, with a name each."""
    known, said = visit.known, []
    if known.heart_rate is not None:
        said.append(f"{names[0]} {known.heart_rate}")
    if known.spo2 is not None:
        said.append(f"{names[1]} {known.spo2}%")
    if known.temperature is not None:
        said.append(f"{names[2]} {known.temperature} C")
    if known.systolic is not None:
        said.append(f"{names[3]} {known.systolic} systolic")
    return said


def background(visit: Visit, draw: random.Random) -> list[str]:
    """Weight, allergy, pregnancy and kidneys, as far as they were asked."""
    known, said = visit.known, []
    if known.weight is not None:
        said.append(draw.choice([f"weight {known.weight} kg", f"weighs {known.weight} kg", f"wt {known.weight} kg"]))
    if known.allergy is not None:
        if known.allergy == "penicillin":
            said.append(draw.choice(["allergic to penicillin", "penicillin allergy (rash)"]))
        else:
            said.append(draw.choice(["no known allergies", "no drug allergies", "NKDA"]))
    if known.pregnant is not None and visit.patient.sex == "female" and visit.age in FERTILE:
        said.append("pregnant" if known.pregnant else draw.choice(["not pregnant", "pregnancy test negative"]))
    if known.egfr is not None:
        said.append(f"eGFR {known.egfr}")
    return said


def listed(parts: list[str]) -> str:
    """Words in a row with commas and an `and`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(parts: list[str]) -> str:
    """The parts as a sentence, or nothing."""
    words = ", ".join(parts)
    return f"{words[:1].upper()}{words[1:]}. " if words else ""


def _family(visit: Visit) -> str:
    word = "Parent" if visit.age < ADULT else "Next of kin"
    return f"{word} {mark('name', visit.patient.relative)}, {mark('phone', visit.patient.relative_phone)}"


def _place(visit: Visit, draw: random.Random) -> str:
    """A sentence on work or school, at times."""
    patient = visit.patient
    if not patient.place or visit.age >= 70 or draw.random() < 0.5:
        return ""
    return f"{'Goes to' if patient.place in SCHOOLS else 'Works at'} {mark('organisation', patient.place)}. "


def _soap(visit: Visit, draw: random.Random) -> str:
    p = visit.patient
    born, day = mark("date", f"{p.born:%m/%d/%Y}"), mark("date", f"{visit.day:%m/%d/%Y}")
    found, absent = listed(written(visit.findings, draw)), ", no ".join(written(visit.absent, draw))
    return (
        f"{mark('organisation', HOSPITAL)}, {visit.ward}\n"
        f"Patient: {mark('name', f'{p.last}, {p.first}')}  DOB: {born}  MRN: {mark('id', p.mrn)}\nDate: {day}\n"
        f"S: {shown_age(visit)} {p.sex} with {found}. No {absent}. {_place(visit, draw)}\n"
        f"O: {', '.join(vitals(visit))}. {_sentence(background(visit, draw))}\n"
        f"Seen by {mark('name', f'{visit.doctor.first[0]}. {visit.doctor.last}')}, MD"
    )


def _telegraphic(visit: Visit, draw: random.Random) -> str:
    p = visit.patient
    day = mark("date", f"{visit.day.month}/{visit.day.day}/{visit.day:%y}")
    age = mark("age", visit.age) if visit.age >= 90 else visit.age
    return (
        f"{day} {mark('name', f'{p.last.upper()}, {p.first}')} {age}{p.sex[0].upper()}\n"
        f"c/o {', '.join(written(visit.findings, draw))}. neg: {', '.join(written(visit.absent, draw))}\n"
        f"{' '.join(vitals(visit))}\n{'. '.join(background(visit, draw))}\n"
        f"{_family(visit)}. {mark('name', visit.nurse.first[0] + visit.nurse.last[0])} RN"
    )


def _narrative(visit: Visit, draw: random.Random) -> str:
    p = visit.patient
    title = ("Ms. " if p.sex == "female" else "Mr. ") if visit.age >= ADULT else ""
    who = f"{title}{mark('name', p.last if title else p.first)}"
    day = mark("date", f"{visit.day.day} {visit.day:%B %Y}")
    measured = listed(vitals(visit, ("heart rate", "oxygen saturation", "temperature", "blood pressure")))
    return (
        f"{who} is {aged(visit)} {p.sex} who came to {visit.ward} on {day} because of "
        f"{listed(written(visit.findings, draw))}. {_place(visit, draw)}There was no sign of "
        f"{' or '.join(written(visit.absent, draw))}. On arrival {measured}. "
        f"{_sentence(background(visit, draw))}{who} lives at {mark('address', p.address)} and was sent by "
        f"Dr. {mark('name', p.doctor)} of {mark('organisation', p.practice)}."
    )


def _headers(visit: Visit, draw: random.Random) -> str:
    p = visit.patient
    return "\n".join(
        [
            f"NAME: {mark('name', p.name)}",
            f"RECORD: {mark('id', p.mrn)}   INSURANCE: {mark('id', p.member)}",
            f"ARRIVAL: {mark('date', visit.day.isoformat())}   UNIT: {visit.ward}",
            f"PRESENTING: {shown_age(visit)} {p.sex}. {'; '.join(written(visit.findings, draw))}",
            f"ABSENT: {'; '.join(written(visit.absent, draw))}",
            f"VITALS: {'; '.join(vitals(visit))}",
            f"BACKGROUND: {'; '.join(background(visit, draw)) or 'not asked'}",
            f"CONTACT: {mark('phone', p.phone)}, {mark('email', p.email)}",
            f"SIGNED: {mark('name', visit.doctor.name)}",
        ]
    )


def _nursing(visit: Visit, draw: random.Random) -> str:
    p = visit.patient
    measured = ", ".join(vitals(visit, ("pulse", "sats", "temp", "BP")))
    return (
        f"Nursing note, {mark('date', f'{visit.day:%A}')} shift. {mark('name', p.first)} ({shown_age(visit)}, {p.sex}) "
        f"arrived with {mark('name', p.relative)}. Reports {listed(written(visit.findings, draw))}; denies "
        f"{' and '.join(written(visit.absent, draw))}. Obs: {measured}. "
        f"{_sentence(background(visit, draw))}{_place(visit, draw)}Told Dr {mark('name', visit.doctor.last)}, "
        f"ext. {mark('phone', visit.doctor.extension)}. - {mark('name', visit.nurse.name)}"
    )


def _lower(visit: Visit, draw: random.Random) -> str:
    return draw.choice([_soap, _nursing, _telegraphic])(visit, draw).lower()


def _call(visit: Visit, draw: random.Random) -> str:
    p = visit.patient
    day = mark("date", f"{visit.day:%b} {visit.day.day}")
    return (
        f"Phone call from {mark('name', p.relative)} ({mark('phone', p.relative_phone)}) on {day} about "
        f"{mark('name', p.name)}, {shown_age(visit)} {p.sex}, of {mark('address', p.town)}. Complaints: "
        f"{', '.join(written(visit.findings, draw))}. Not present: {', '.join(written(visit.absent, draw))}. Brought "
        f"in and measured: {', '.join(vitals(visit))}. {_sentence(background(visit, draw))}Record {mark('id', p.mrn)}."
    )


_STYLES: tuple[Callable[[Visit, random.Random], str], ...] = (
    _soap, _telegraphic, _narrative, _headers, _nursing, _lower, _call,
)  # fmt: skip


def note(visit: Visit, draw: random.Random) -> str:
    """A note of a visit, with marks."""
    return draw.choice(_STYLES)(visit, draw)


def diagnosis(visit: Visit, draw: random.Random) -> str:
    """The final diagnosis as somebody typed it."""
    name = draw.choice([visit.condition.name, *visit.condition.other_names])
    return draw.choice([name, name[:1].upper() + name[1:], f"{name}, {visit.severity}", f"Dx: {name}"])
