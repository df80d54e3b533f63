"""FHIR R4 bundles of the example hospital: one for a patient, with all of their visits.

Source: HL7 FHIR R4 (4.0.1), https://hl7.org/fhir/R4/: the pages of the resources below; LOINC codes of vital signs
from its page of the vital signs profile.
"""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

from schoolhouse.get.hospital_marks import Planted, mark
from schoolhouse.get.hospital_notes import note
from schoolhouse.get.hospital_people import Patient
from schoolhouse.get.hospital_visits import Visit

Resource = dict[str, Any]
_VITALS = (
    ("heart_rate", "8867-4", "Heart rate", "/min"), ("spo2", "2708-6", "Oxygen saturation", "%"),
    ("temperature", "8310-5", "Body temperature", "Cel"), ("systolic", "8480-6", "Systolic blood pressure", "mm[Hg]"),
    ("weight", "29463-7", "Body weight", "kg"),
)  # fmt: skip


def write_bundle(raw: Path, patient: Patient, visits: list[Visit], draw: random.Random, planted: Planted) -> str:
    """Write a patient's bundle; return its name."""
    name = f"fhir/{patient.key}.json"
    resources = [_patient(patient)]
    for visit in visits:
        resources += _visit(visit, draw)
    entries = []
    for resource in resources:
        place = f"resource {resource['resourceType']}/{resource['id']}"
        cleaned = _clean(resource, planted, name, place, "", patient.key)
        entries.append({"fullUrl": f"https://lindenmoor.example/fhir/{place.split()[1]}", "resource": cleaned})
    bundle = {"resourceType": "Bundle", "id": f"bundle-{patient.key}", "type": "collection", "entry": entries}
    (raw / name).parent.mkdir(parents=True, exist_ok=True)
    (raw / name).write_text(json.dumps(bundle, ensure_ascii=False, indent=1), encoding="utf-8")
    return name


def _clean(value: Any, planted: Planted, file: str, place: str, part: str, person: str) -> Any:
    """Take the marks out of every text of a resource; an attachment is encoded after that, as the standard wants."""
    if isinstance(value, dict):
        inner = {
            key: _clean(item, planted, file, place, f"{part}.{key}".strip("."), person) for key, item in value.items()
        }
        if "contentType" in inner:
            inner["data"] = base64.b64encode(inner["data"].encode()).decode()
        return inner
    if isinstance(value, list):
        return [_clean(item, planted, file, place, f"{part}[{n}]", person) for n, item in enumerate(value)]
    return planted.clean(value, file, place, part, person) if isinstance(value, str) else value


def _patient(p: Patient) -> Resource:
    return {
        "resourceType": "Patient", "id": p.key,
        "text": {
            "status": "generated",
            "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{mark("name", p.name)}, {p.sex}, '
            f"born {mark('date', p.born.isoformat())}</div>",
        },
        "identifier": [
            {"system": "urn:oid:2.16.840.1.113883.19.5", "value": mark("id", p.mrn)},
            {"system": "http://hl7.org/fhir/sid/us-ssn", "value": mark("id", p.ssn)},
        ],
        "name": [{"use": "official", "family": mark("name", p.last), "given": [mark("name", p.first)]}],
        "telecom": [
            {"system": "phone", "value": mark("phone", p.phone)}, {"system": "email", "value": mark("email", p.email)},
        ],
        "gender": p.sex, "birthDate": mark("date", p.born.isoformat()),
        "address": [
            {"line": [mark("address", p.street)], "city": mark("address", p.town),
             "postalCode": mark("address", p.postcode)},
        ],
        "contact": [
            {"name": {"text": mark("name", p.relative)},
             "telecom": [{"system": "phone", "value": mark("phone", p.relative_phone)}]},
        ],
        "communication": [{"language": {"text": p.language}}],
        "generalPractitioner": [{"display": f"Dr. {mark('name', p.doctor)}, {mark('organisation', p.practice)}"}],
    }  # fmt: skip


def _visit(visit: Visit, draw: random.Random) -> list[Resource]:
    who = {"reference": f"Patient/{visit.patient.key}"}
    at = {"reference": f"Encounter/{visit.id}"}
    day = mark("date", visit.day.isoformat())
    name = visit.condition.name
    code = {"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": visit.condition.code, "display": name}
    found: list[Resource] = [
        {
            "resourceType": "Encounter", "id": visit.id, "status": "finished", "subject": who,
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "EMER"},
            "type": [{"text": visit.ward}], "period": {"start": day, "end": day},
            "participant": [{"individual": {"display": f"Dr. {mark('name', visit.doctor.name)}"}}],
        },
        {
            "resourceType": "Condition", "id": f"{visit.id}-condition", "subject": who, "encounter": at,
            "code": {"coding": [code], "text": name}, "recordedDate": day,
            "severity": {"text": visit.severity},
        },
    ]  # fmt: skip
    for field, loinc, label, unit in _VITALS:
        value = getattr(visit.known, field)
        if value is None:
            continue
        coding = {"system": "http://loinc.org", "code": loinc, "display": label}
        found.append(
            {
                "resourceType": "Observation", "id": f"{visit.id}-{field.replace('_', '-')}", "status": "final",
                "code": {"coding": [coding], "text": label}, "subject": who, "encounter": at, "effectiveDateTime": day,
                "valueQuantity": {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit},
            }
        )  # fmt: skip
    if visit.known.allergy == "penicillin":
        found.append({"resourceType": "AllergyIntolerance", "id": f"{visit.id}-allergy", "patient": who,
                      "code": {"text": "penicillin"}, "recordedDate": day})  # fmt: skip
    plan = visit.plan
    if plan.dose_mg is not None:
        found.append(
            {
                "resourceType": "MedicationRequest", "id": f"{visit.id}-drug", "status": "active", "intent": "order",
                "subject": who, "encounter": at, "authoredOn": day, "medicationCodeableConcept": {"text": plan.drug},
                "dosageInstruction": [{"text": f"{plan.dose_mg:g} mg"}],
                "requester": {"display": f"Dr. {mark('name', visit.doctor.last)}"},
            }
        )  # fmt: skip
    found.append(
        {
            "resourceType": "DocumentReference", "id": f"{visit.id}-note", "status": "current", "subject": who,
            "date": f"{day}T12:00:00Z", "type": {"text": "note"},
            "content": [{"attachment": {"contentType": "text/plain; charset=utf-8", "data": note(visit, draw)}}],
        }
    )  # fmt: skip
    return found
