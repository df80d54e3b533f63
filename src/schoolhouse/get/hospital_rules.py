"""The medicine of the example hospital: a small world of its own with rules that have one right answer.

Names, ICD-10-CM codes and the drugs' names are real; findings, thresholds and doses are invented so that a small model
can learn them and a test can work them out again. Nothing here is medical advice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

ADULT = 16  # from this age on a patient gets the largest dose, whatever they weigh
FERTILE = range(12, 51)
LEAST_FINDINGS = 3
WEAK_KIDNEYS = 30  # eGFR below which a dose is halved, where kidneys matter
COLOURS = ("red", "orange", "yellow", "green")


@dataclass(frozen=True)
class Condition:
    """A disease. ages: whom it befalls, first and last year; mild, moderate, severe: how often out of ten."""

    name: str
    code: str
    findings: tuple[str, ...]
    ages: tuple[int, int]
    drug: str | None
    other_names: tuple[str, ...]
    severity: tuple[int, int, int] = (6, 3, 1)
    sex: str | None = None


@dataclass(frozen=True)
class Drug:
    """A drug by mg per kg of weight up to a largest dose. instead: what is given where it must not be."""

    name: str
    mg_per_kg: float
    most_mg: float
    instead: str | None = None
    is_penicillin: bool = False
    not_when_pregnant: bool = False
    kidneys: bool = False
    always_by_weight: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known of a patient at a visit; None is unknown. pregnant is False for whom it cannot be asked."""

    heart_rate: int | None
    spo2: int | None
    temperature: float | None
    weight: int | None
    allergy: str | None
    pregnant: bool | None
    egfr: int | None
    systolic: int | None = None


@dataclass(frozen=True)
class Plan:
    """What the guideline says is to be done; None is what cannot be said before the missing fact is known."""

    missing: str | None
    triage: str | None
    drug: str | None
    dose_mg: float | None
    goes_to: str | None


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("acute otitis media", "H66.90", ("ear pain", "fever", "bulging eardrum", "hearing loss"), (0, 15),
                  "amoxicillin", ("middle ear infection", "otitis media", "AOM")),
        Condition("streptococcal pharyngitis", "J02.0",
                  ("sore throat", "fever", "swollen neck glands", "coated tonsils"), (3, 45), "penicillin V",
                  ("strep throat", "streptococcal sore throat", "strep pharyngitis")),
        Condition("influenza", "J10.1", ("fever", "cough", "muscle aches", "headache", "tiredness"), (0, 100),
                  "oseltamivir", ("flu", "influenza with respiratory symptoms", "seasonal flu")),
        Condition("pneumonia", "J18.9", ("fever", "cough", "crackles", "chest pain on breathing", "breathlessness"),
                  (0, 100), "amoxicillin", ("chest infection", "community-acquired pneumonia", "CAP"), (3, 4, 3)),
        Condition("asthma exacerbation", "J45.901", ("wheeze", "breathlessness", "cough", "chest tightness"), (2, 75),
                  "prednisolone", ("asthma attack", "acute asthma", "flare of asthma"), (3, 4, 3)),
        Condition("croup", "J05.0", ("barking cough", "stridor", "hoarse voice", "fever"), (0, 6), "dexamethasone",
                  ("acute obstructive laryngitis", "laryngotracheitis", "viral croup"), (5, 3, 2)),
        Condition("gastroenteritis", "A09", ("diarrhoea", "vomiting", "abdominal cramps", "fever"), (0, 100),
                  "ondansetron", ("stomach flu", "infectious gastroenteritis", "tummy bug")),
        Condition("urinary tract infection", "N39.0",
                  ("burning urination", "frequent urination", "lower abdominal pain", "cloudy urine"), (2, 100),
                  "trimethoprim", ("UTI", "bladder infection", "lower UTI"), (8, 2, 0)),
        Condition("pyelonephritis", "N10",
                  ("flank pain", "fever", "burning urination", "vomiting", "frequent urination"), (12, 100),
                  "gentamicin", ("kidney infection", "acute pyelonephritis", "upper UTI"), (3, 4, 3)),
        Condition("cellulitis", "L03.90", ("skin redness", "skin warmth", "leg swelling", "fever"), (1, 100),
                  "flucloxacillin", ("skin infection", "infected leg", "soft tissue infection")),
        Condition("migraine", "G43.909", ("headache", "vomiting", "light sensitivity", "visual aura"), (8, 60),
                  "ibuprofen", ("migraine attack", "sick headache", "hemicrania"), (9, 1, 0)),
        Condition("appendicitis", "K35.80",
                  ("right lower abdominal pain", "vomiting", "fever", "rebound tenderness"), (5, 60), None,
                  ("acute appendicitis", "inflamed appendix", "appy"), (3, 5, 2)),
        Condition("anaphylaxis", "T78.2XXA", ("hives", "lip swelling", "wheeze", "faintness"), (1, 100), "adrenaline",
                  ("anaphylactic shock", "severe allergic reaction", "anaphylactic reaction"), (0, 3, 7)),
        Condition("iron deficiency anaemia", "D50.9", ("tiredness", "pallor", "breathlessness", "faintness"),
                  (1, 100), "iron", ("IDA", "low iron anaemia", "iron deficiency anemia"), (8, 2, 0)),
        Condition("heart failure", "I50.9",
                  ("breathlessness", "leg swelling", "crackles", "tiredness", "trouble lying flat"), (45, 100),
                  "furosemide", ("congestive heart failure", "CHF", "cardiac failure"), (3, 4, 3)),
        Condition("deep vein thrombosis", "I82.409",
                  ("calf pain", "leg swelling", "skin warmth", "swollen surface veins"), (18, 100), "enoxaparin",
                  ("DVT", "clot in the leg", "leg vein thrombosis"), (8, 2, 0)),
    )
}  # fmt: skip
DRUGS = {
    drug.name: drug
    for drug in (
        Drug("amoxicillin", 30, 1000, "azithromycin", is_penicillin=True),
        Drug("penicillin V", 10, 500, "azithromycin", is_penicillin=True),
        Drug("flucloxacillin", 25, 1000, "azithromycin", is_penicillin=True),
        Drug("azithromycin", 10, 500),
        Drug("oseltamivir", 2, 75),
        Drug("prednisolone", 1, 40),
        Drug("dexamethasone", 0.6, 12),
        Drug("ondansetron", 0.1, 8, "cyclizine", not_when_pregnant=True),
        Drug("cyclizine", 1, 50),
        Drug("trimethoprim", 4, 200, "cefalexin", not_when_pregnant=True),
        Drug("cefalexin", 25, 500),
        Drug("gentamicin", 5, 400, "ceftriaxone", not_when_pregnant=True, kidneys=True, always_by_weight=True),
        Drug("ceftriaxone", 50, 2000),
        Drug("ibuprofen", 10, 400, "paracetamol", not_when_pregnant=True),
        Drug("paracetamol", 15, 1000),
        Drug("adrenaline", 0.01, 0.5),
        Drug("iron", 3, 200),
        Drug("furosemide", 0.5, 40),
        Drug("enoxaparin", 1, 100, kidneys=True, always_by_weight=True),
    )
}
QUESTIONS = {
    "heart rate": "What is the patient's heart rate?",
    "oxygen saturation": "What is the patient's oxygen saturation?",
    "temperature": "What is the patient's temperature?",
    "allergy": "Is the patient allergic to penicillin?",
    "pregnancy": "Is the patient pregnant?",
    "kidney function": "What is the patient's eGFR?",
    "weight": "What is the patient's weight in kilograms?",
}
"""What may be missing, in the order in which it is asked for, and the question that asks for exactly that."""

FIELDS = {
    "heart rate": "heart_rate", "oxygen saturation": "spo2", "temperature": "temperature", "allergy": "allergy",
    "pregnancy": "pregnant", "kidney function": "egfr", "weight": "weight",
}  # fmt: skip
HEART_RATES = {5: (190, 170, 150), 12: (170, 150, 130), 200: (150, 130, 110)}
"""Above which rate a patient is red, orange or yellow, by the age below which it holds."""

SATURATIONS = (90, 93, 95)
"""Below which saturation a patient is red, orange or yellow."""


def diagnose(findings: Collection[str], age: int) -> list[str]:
    """The conditions that fit best: of those that befall this age, the most findings, at least `LEAST_FINDINGS`."""
    counts = {
        name: sum(finding in findings for finding in condition.findings)
        for name, condition in CONDITIONS.items()
        if condition.ages[0] <= age <= condition.ages[1]
    }
    most = max(counts.values())
    return [name for name, count in counts.items() if count == most >= LEAST_FINDINGS]


def required(condition: str, age: int, sex: str) -> list[str]:
    """What must be known before anything is given, in the order of `QUESTIONS`."""
    names = ["heart rate", "oxygen saturation", "temperature"]
    name = CONDITIONS[condition].drug
    if name is not None:
        drug = DRUGS[name]
        names += ["allergy"] if drug.is_penicillin else []
        names += ["pregnancy"] if drug.not_when_pregnant and sex == "female" and age in FERTILE else []
        names += ["kidney function"] if drug.kidneys else []
        names += ["weight"] if age < ADULT or drug.always_by_weight else []
    return names


def triage(age: int, facts: Facts) -> str | None:
    """The colour of a patient; None while heart rate, saturation or temperature is unknown."""
    if facts.heart_rate is None or facts.spo2 is None or facts.temperature is None:
        return None
    rates = next(rates for below, rates in HEART_RATES.items() if age < below)
    for colour, rate, saturation in zip(COLOURS, rates, SATURATIONS, strict=False):
        if facts.heart_rate > rate or facts.spo2 < saturation or _is_hot(colour, age, facts.temperature):
            return colour
    return "green"


def _is_hot(colour: str, age: int, temperature: float) -> bool:
    if colour == "orange":
        return temperature >= 40.0 or (age < 1 and temperature >= 38.0)
    return colour == "yellow" and (temperature >= 39.0 or (age >= 75 and temperature >= 38.0))


def plan(condition: str, age: int, sex: str, facts: Facts) -> Plan:
    """What the guidelines say of a patient, as far as it is known."""
    missing = next((name for name in required(condition, age, sex) if getattr(facts, FIELDS[name]) is None), None)
    colour = triage(age, facts)
    drug = _drug(condition, facts, missing)
    dose = None if drug is None or missing in ("weight", "kidney function") else _dose(drug, age, facts)
    return Plan(missing, colour, drug, dose, _goes_to(condition, colour, facts, missing))


def _drug(condition: str, facts: Facts, missing: str | None) -> str | None:
    """The drug by name, `none` where none is given."""
    name = CONDITIONS[condition].drug
    if name is None:
        return "none"
    if missing in ("allergy", "pregnancy"):
        return None
    drug = DRUGS[name]
    avoided = (drug.is_penicillin and facts.allergy == "penicillin") or (drug.not_when_pregnant and facts.pregnant)
    return drug.instead if avoided else name


def _dose(name: str, age: int, facts: Facts) -> float | None:
    if name == "none":
        return None
    drug = DRUGS[name]
    dose = drug.most_mg
    if age < ADULT or drug.always_by_weight:
        assert facts.weight is not None, "a dose by weight is worked out only once the weight is known"
        dose = min(dose, drug.mg_per_kg * facts.weight)
    if drug.kidneys and facts.egfr is not None and facts.egfr < WEAK_KIDNEYS:
        dose /= 2
    return round(dose, 2)


def dose_reason(name: str, age: int, facts: Facts) -> str:
    """How the dose of a drug is worked out, step by step."""
    drug = DRUGS[name]
    if age < ADULT or drug.always_by_weight:
        assert facts.weight is not None, "a dose by weight is worked out only once the weight is known"
        product = round(drug.mg_per_kg * facts.weight, 2)
        steps = [f"{drug.mg_per_kg:g} mg per kg * {facts.weight} kg = {product:g} mg"]
        if product > drug.most_mg:
            steps.append(f"at most {drug.most_mg:g} mg")
    else:
        steps = [f"adult: {drug.most_mg:g} mg"]
    if drug.kidneys and facts.egfr is not None and facts.egfr < WEAK_KIDNEYS:
        steps.append(f"eGFR {facts.egfr} is below {WEAK_KIDNEYS}: half")
    return f"{name}: {', '.join(steps)}"


def triage_reason(age: int, facts: Facts) -> str:
    """The colour of each sign by itself. The three signs must be known."""
    well = Facts(heart_rate=0, spo2=100, temperature=36.0, weight=None, allergy=None, pregnant=None, egfr=None)
    signs = {
        f"heart rate {facts.heart_rate} at {age}": replace(well, heart_rate=facts.heart_rate),
        f"saturation {facts.spo2}": replace(well, spo2=facts.spo2),
        f"temperature {facts.temperature}": replace(well, temperature=facts.temperature),
    }
    return ", ".join(f"{sign} {triage(age, alone)}" for sign, alone in signs.items())


LARGE_BILL = 1000
"""Euros from which a bill counts as large."""

BILLS = {"paid": ("close", "close"), "open": ("remind", "call the payer"), "refused": ("write off", "appeal")}
"""By its state, what is done with a bill below `LARGE_BILL`, and with a larger one."""


def bill_action(state: str, amount: float) -> tuple[str, str]:
    """What is to be done with a bill, and why."""
    large = amount >= LARGE_BILL
    size = f"{'at least' if large else 'below'} {LARGE_BILL}"
    return BILLS[state][large], f"{state}, {amount:.2f} is {size}"


def _goes_to(condition: str, colour: str | None, facts: Facts, missing: str | None) -> str | None:
    if colour is None or (condition == "pyelonephritis" and missing == "pregnancy"):
        return None
    if colour == "red":
        return "intensive care"
    if condition == "appendicitis":
        return "surgery"
    if condition == "pyelonephritis" and facts.pregnant:
        return "obstetrics"
    return "ward" if colour == "orange" else "home"


def age_group(age: int) -> str:
    """The group that an age is counted in."""
    for below, name in ((1, "under 1"), (5, "1 to 4"), (16, "5 to 15"), (50, "16 to 49"), (75, "50 to 74")):
        if age < below:
            return name
    return "75 and over"
