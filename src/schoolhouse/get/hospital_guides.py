"""The example hospital's guidelines in Markdown, and the same rules as JSON: what every right answer follows from."""

from __future__ import annotations

from typing import Any

from schoolhouse.get.hospital_rules import (
    ADULT,
    BILLS,
    CONDITIONS,
    DRUGS,
    FERTILE,
    HEART_RATES,
    LARGE_BILL,
    LEAST_FINDINGS,
    QUESTIONS,
    SATURATIONS,
    WEAK_KIDNEYS,
    Drug,
)

INVENTED = (
    "These rules are invented for an example. They are not medical advice: never treat, dose or send anybody by them."
)
_WEIGHTS = (5, 10, 15, 20, 30, 40, 60, 80)


def guidelines() -> dict[str, str]:
    """File name to text. They name nobody."""
    texts = {
        "diagnosis.md": _diagnosis(), "triage.md": _triage(), "dosing.md": _dosing(), "asking.md": _asking(),
        "referral.md": _referral(), "bills.md": _bills(),
    }  # fmt: skip
    return {name: f"{text.strip()}\n\n---\n\n{INVENTED}\n" for name, text in texts.items()}


def rules() -> dict[str, Any]:
    """The rules as JSON."""
    return {
        "note": INVENTED,
        "least_findings": LEAST_FINDINGS,
        "conditions": [
            {"name": c.name, "icd10": c.code, "findings": c.findings, "ages": c.ages, "drug": c.drug,
             "other_names": c.other_names}
            for c in CONDITIONS.values()
        ],
        "drugs": [vars(drug) for drug in DRUGS.values()],
        "adult": ADULT,
        "fertile": [FERTILE.start, FERTILE.stop - 1],
        "weak_kidneys": WEAK_KIDNEYS,
        "heart_rates": {str(below): rates for below, rates in HEART_RATES.items()},
        "saturations": SATURATIONS,
        "questions": QUESTIONS,
    }  # fmt: skip


def _diagnosis() -> str:
    lines = [
        "# How to name the condition",
        "",
        "Count the typical findings that are present. The condition with the most of them is the diagnosis, if there "
        f"are at least {LEAST_FINDINGS} and the age fits. One finding alone decides nothing: most belong to several "
        "conditions.",
        "",
        "| Condition | ICD-10-CM | Typical findings | Ages |",
        "|---|---|---|---|",
    ]
    for condition in CONDITIONS.values():
        low, high = condition.ages
        ages = "all" if (low, high) == (0, 100) else f"{low} and over" if high == 100 else f"{low} to {high}"
        lines.append(f"| {condition.name} | {condition.code} | {', '.join(condition.findings)} | {ages} |")
    return "\n".join(lines)


def _triage() -> str:
    lines = [
        "# Triage by vital signs",
        "",
        "Take the first colour of which any sign is met: red before orange before yellow. If none is met, it is green.",
        "",
        "| Colour | Oxygen saturation | " + " | ".join(f"Heart rate, {who}" for who in _bands()) + " | Temperature |",
        "|---|---|" + "---|" * len(HEART_RATES) + "---|",
    ]
    heat = ("", "40.0 or more; 38.0 or more under the age of 1", "39.0 or more; 38.0 or more from the age of 75")
    for number, colour in enumerate(("red", "orange", "yellow")):
        rates = " | ".join(f"above {rates[number]}" for rates in HEART_RATES.values())
        lines.append(f"| {colour} | below {SATURATIONS[number]} | {rates} | {heat[number]} |")
    lines += ["", "Heart rate in beats a minute, saturation in per cent, temperature in degrees Celsius.", ""]
    lines += ["- red: a doctor at once", "- orange: within 10 minutes", "- yellow: within an hour", "- green: can wait"]
    return "\n".join(lines)


def _bands() -> list[str]:
    young, middle, _ = HEART_RATES
    return [f"under {young} years", f"{young} to {middle - 1} years", f"{middle} years and over"]


def _dosing() -> str:
    lines = [
        "# Drugs and doses",
        "",
        f"Under the age of {ADULT}: mg per kg times the weight in kg, but never more than the largest dose. From "
        f"{ADULT} on: the largest dose, whatever the weight. Drugs marked `always by weight` are dosed by weight at "
        "every age.",
        f"Where kidneys are marked and the eGFR is below {WEAK_KIDNEYS}, give half of the dose.",
        "",
        "| Condition | Drug | Instead, if it must not be given |",
        "|---|---|---|",
    ]
    for condition in CONDITIONS.values():
        drug = DRUGS.get(condition.drug or "")
        lines.append(f"| {condition.name} | {drug.name if drug else 'none'} | {_instead(drug) if drug else ''} |")
    lines += ["", "| Drug | mg per kg | Largest dose, mg | Remarks |", "|---|---|---|---|"]
    for drug in DRUGS.values():
        lines.append(f"| {drug.name} | {drug.mg_per_kg:g} | {drug.most_mg:g} | {_remarks(drug)} |")
    lines += ["", f"## Doses in mg under the age of {ADULT}, by weight", ""]
    lines += ["| Drug | " + " | ".join(f"{kg} kg" for kg in _WEIGHTS) + " |", "|---|" + "---|" * len(_WEIGHTS)]
    for drug in DRUGS.values():
        doses = [f"{min(round(kg * drug.mg_per_kg, 2), drug.most_mg):g}" for kg in _WEIGHTS]
        lines.append(f"| {drug.name} | {' | '.join(doses)} |")
    return "\n".join(lines)


def _instead(drug: Drug) -> str:
    reasons = ["allergic to penicillin"] if drug.is_penicillin else []
    reasons += ["pregnant"] if drug.not_when_pregnant else []
    return f"{drug.instead} ({' or '.join(reasons)})" if drug.instead else ""


def _remarks(drug: Drug) -> str:
    words = (
        ("penicillin", drug.is_penicillin), ("not in pregnancy", drug.not_when_pregnant), ("kidneys", drug.kidneys),
        ("always by weight", drug.always_by_weight),
    )  # fmt: skip
    return ", ".join(word for word, holds in words if holds)


def _asking() -> str:
    who = {
        "heart rate": "always", "oxygen saturation": "always", "temperature": "always",
        "allergy": "before a penicillin",
        "pregnancy": f"women from {FERTILE.start} to {FERTILE.stop - 1}, before a drug that is not for pregnancy",
        "kidney function": "before a drug marked `kidneys`",
        "weight": f"under the age of {ADULT}, and at every age for drugs marked `always by weight`",
    }  # fmt: skip
    lines = [
        "# What must be known first",
        "",
        "If a fact of this list is needed and not known, ask for exactly that, before anything is given. What is not "
        "needed is not asked. If several are missing, ask in the order of the list.",
        "",
        "| Fact | Needed | Question |",
        "|---|---|---|",
    ]
    lines += [f"| {fact} | {who[fact]} | {question} |" for fact, question in QUESTIONS.items()]
    return "\n".join(lines)


def _referral() -> str:
    return """# Where a patient goes

Take the first line that fits.

1. Triage red: intensive care.
2. Appendicitis: surgery.
3. Pyelonephritis in pregnancy: obstetrics.
4. Triage orange: ward.
5. All others: home. Come back if it is worse, or not better after three days.
"""


def _bills() -> str:
    lines = [
        "# What is done with a bill",
        "",
        f"| State | Below {LARGE_BILL} EUR | From {LARGE_BILL} EUR on |",
        "|---|---|---|",
        *(f"| {state} | {small} | {large} |" for state, (small, large) in BILLS.items()),
    ]
    return "\n".join(lines)
