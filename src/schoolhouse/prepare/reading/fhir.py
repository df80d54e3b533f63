"""FHIR R4 by walking plain JSON: bundles and single resources become documents of their patients.

Source: HL7 FHIR R4 (4.0.1), https://hl7.org/fhir/R4/: bundle.html (how references are resolved), datatypes.html, and
the page of each resource named below.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schoolhouse.prepare.reading.items import WHOLE, Item, Note, Piece, SetAside, Unreadable
from schoolhouse.prepare.reading.texts import decoded, html_text
from schoolhouse.text.sourced import Fact

Resource = Mapping[str, Any]
_PATIENT = re.compile(r"(?:^|/)Patient/([A-Za-z0-9.-]{1,64})(?:/_history/.*)?$")
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_NAME, _MIME = re.compile(r"[A-Za-z]{1,40}"), re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,80}")


@dataclass(frozen=True)
class Coded:
    """A resource whose meaning is a coded concept: what its document is called, and where code and date stand."""

    kind: str
    label: str
    code: str
    dates: tuple[str, ...]


CODED = {
    "Condition": Coded("condition", "Diagnosis", "code", ("onsetDateTime", "onsetPeriod", "recordedDate")),
    "Observation": Coded("observation", "Observation", "code", ("effectiveDateTime", "effectivePeriod", "issued")),
    "MedicationRequest": Coded("medication", "Medication", "medicationCodeableConcept", ("authoredOn",)),
    "MedicationStatement": Coded("medication", "Medication", "medicationCodeableConcept", ("effectiveDateTime",)),
    "Encounter": Coded("encounter", "Encounter", "type", ("period",)),
    "Procedure": Coded("procedure", "Procedure", "code", ("performedDateTime", "performedPeriod")),
    "AllergyIntolerance": Coded("allergy", "Allergy", "code", ("onsetDateTime", "recordedDate")),
    "Immunization": Coded("immunization", "Immunisation", "vaccineCode", ("occurrenceDateTime",)),
}
_WRITTEN = ("DocumentReference", "Composition", "DiagnosticReport")
_SILENT = ("Medication",)  # told with the request that refers to it


def resource_items(entries: list[tuple[str | None, object]], place: str) -> Iterator[Item]:
    """The documents of resources, given with their fullUrls; bundles among them are opened.

    place: where all of them stand; `whole file` where a resource's own id says enough. Places are distinct.
    """
    opened = list(_opened(entries))
    known = _Known(opened)
    taken: set[str] = set()
    for number, (url, resource) in enumerate(opened, 1):
        if not isinstance(resource, Mapping) or not isinstance(resource.get("resourceType"), str):
            yield SetAside(f"{_inside(place)}entry {number}", "no FHIR resource")
            continue
        at = place
        if place == WHOLE or len(opened) > 1:
            at = f"{_inside(place)}resource {_address(resource) or f'entry {number}'}"
        if at in taken:
            at += f", entry {number}"
        taken.add(at)
        try:
            yield from _items(resource, known.person(url, resource), at, known)
        except (TypeError, AttributeError, KeyError, IndexError, ValueError):
            yield SetAside(at, "a FHIR resource with fields of another shape than R4's")


def _inside(place: str) -> str:
    return "" if place == WHOLE else f"{place}, "


def _opened(entries: list[tuple[str | None, object]]) -> Iterator[tuple[str | None, object]]:
    for url, resource in entries:
        if isinstance(resource, Mapping) and resource.get("resourceType") == "Bundle":
            inner = [entry for entry in _list(resource.get("entry")) if isinstance(entry, Mapping)]
            yield from _opened([(entry.get("fullUrl"), entry.get("resource")) for entry in inner])
        else:
            yield url, resource


def _address(resource: Resource) -> str | None:
    """`Type/id`, where the id is one: R4 allows letters, digits, dots and dashes."""
    id = resource.get("id")
    return f"{resource['resourceType']}/{id}" if isinstance(id, str) and _ID.fullmatch(id) else None


class _Known:
    """The resources of a bundle by the words that refer to them."""

    def __init__(self, opened: list[tuple[str | None, object]]) -> None:
        self._by_reference: dict[str, tuple[str | None, Resource]] = {}
        for url, resource in opened:
            if isinstance(resource, Mapping) and isinstance(resource.get("resourceType"), str):
                for reference in (url, _address(resource)):
                    if isinstance(reference, str):
                        self._by_reference.setdefault(reference, (url, resource))

    def find(self, reference: object, holder: Resource) -> tuple[str | None, Resource] | None:
        """What a Reference points at: inside of its holder, or in the bundle."""
        words = reference.get("reference") if isinstance(reference, Mapping) else None
        if not isinstance(words, str):
            return None
        if words.startswith("#"):
            inner = (r for r in _list(holder.get("contained")) if isinstance(r, Mapping) and r.get("id") == words[1:])
            return next(((None, resource) for resource in inner), None)
        words = words.split("/_history/")[0]
        return self._by_reference.get(words)

    def person(self, url: str | None, resource: Resource) -> str | None:
        """Whose a resource is: the id of the Patient that it is or that its subject points at."""
        if resource["resourceType"] == "Patient":
            if isinstance(resource.get("id"), str):
                return str(resource["id"])
            return re.split("[:/]", url)[-1] if isinstance(url, str) else None
        subject = resource.get("subject") or resource.get("patient")
        found = self.find(subject, resource)
        if found is not None:
            return self.person(*found) if found[1].get("resourceType") == "Patient" else None
        words = subject.get("reference") if isinstance(subject, Mapping) else None
        named = _PATIENT.search(words) if isinstance(words, str) else None
        return named[1] if named else None


def _items(resource: Resource, person: str | None, place: str, known: _Known) -> Iterator[Item]:
    type = resource["resourceType"]
    if type in _SILENT:
        return
    if type != "Patient" and type not in CODED and type not in _WRITTEN:
        shown = type if _NAME.fullmatch(type) else "of an unknown type"
        yield Note(f"FHIR resources that make no document, {shown}")
        return
    if "entered-in-error" in (resource.get("status"), _concept(resource.get("verificationStatus")).get("code")):
        yield SetAside(place, "entered in error, says the resource itself")
        return
    if person is None:
        yield Note("FHIR resources whose patient is not known")
    if type == "Patient":
        yield _patient(resource, person, place)
    elif type in CODED:
        yield _coded(resource, CODED[type], person, place, known)
    else:
        yield from _written(resource, person, place)


def _patient(resource: Resource, person: str | None, place: str) -> Piece:
    """Who somebody is, in words and facts: also what names to look for in that person's other documents."""
    names = [_human_name(name) for name in _list(resource.get("name"))]
    contacts = [telecom.get("value") for telecom in _list(resource.get("telecom"))]
    homes = [_home(address) for address in _list(resource.get("address"))]
    numbers = [identifier.get("value") for identifier in _list(resource.get("identifier"))]
    facts: dict[str, Fact] = {"gender": resource.get("gender"), "birth_date": resource.get("birthDate")}
    facts["deceased"] = resource.get("deceasedDateTime") or resource.get("deceasedBoolean")
    for name, values in (("name", names), ("contact", contacts), ("address", homes), ("identifier", numbers)):
        said = [value for value in values if isinstance(value, str) and value]
        facts |= {name if not number else f"{name}_{number + 1}": value for number, value in enumerate(said)}
    lines = [f"{key.replace('_', ' ').capitalize()}: {value}" for key, value in _said(facts).items()]
    return Piece("\n".join(["Patient", *lines]), place, "patient", person, facts=_said(facts))


def _human_name(name: Mapping[str, Any]) -> str:
    given = _list(name.get("prefix")) + _list(name.get("given"))
    return name.get("text") or " ".join([*given, name.get("family") or ""]).strip()


def _home(address: Mapping[str, Any]) -> str:
    town = " ".join(part for part in (address.get("postalCode"), address.get("city")) if part)
    parts = [*_list(address.get("line")), town, address.get("state"), address.get("country")]
    return address.get("text") or ", ".join(part for part in parts if part)


def _coded(resource: Resource, how: Coded, person: str | None, place: str, known: _Known) -> Piece:
    concept = resource.get(how.code)
    if concept is None and "medicationReference" in resource:
        found = known.find(resource["medicationReference"], resource)
        concept = found[1].get("code") if found else resource["medicationReference"]
    facts = _concept(concept[0] if isinstance(concept, list) and concept else concept)
    facts |= _value(resource)
    facts |= _date(resource, how.dates)
    facts["status"] = resource.get("status") or _concept(resource.get("clinicalStatus")).get("code")
    if resource["resourceType"] == "Encounter":
        facts["class"] = (resource.get("class") or {}).get("code")
    parts = []
    for component in _list(resource.get("component")):
        inner = _concept(component.get("code")) | _value(component)
        key = inner.get("code") or inner.get("display")
        facts |= {f"{key}.{name}": inner.get(name) for name in ("display", "value", "unit")}
        parts.append(f"{_shown(inner)}: {_measure(inner)}")
    head = f"{how.label}: {_shown(facts)}" + (f", {_measure(facts)}" if _measure(facts) else "")
    reasons = [_shown(_concept(reason)) for reason in _list(resource.get("reasonCode"))]
    dose = [dosage.get("text") for dosage in _list(resource.get("dosageInstruction") or resource.get("dosage"))]
    notes = [note.get("text") for note in _list(resource.get("note"))]
    when = " to ".join(str(facts[name]) for name in ("date", "end") if facts.get(name))
    lines = [head, *parts, *(f"Reason: {reason}" for reason in reasons if reason)]
    lines += [*(line for line in dose + notes if line), f"Date: {when}" if when else ""]
    lines.append(f"Status: {facts['status']}" if facts["status"] else "")
    return Piece("\n".join(line for line in lines if line), place, how.kind, person, facts=_said(facts))


def _written(resource: Resource, person: str | None, place: str) -> Iterator[Item]:
    """Narratives: attached texts, else what the resource says itself."""
    type = resource["resourceType"]
    facts = _concept(resource.get("type") or resource.get("code"))
    facts |= _date(resource, ("date", "effectiveDateTime", "effectivePeriod", "issued"))
    facts["status"] = resource.get("status")
    attached = [content.get("attachment") for content in _list(resource.get("content"))]
    attached += _list(resource.get("presentedForm"))
    texts: list[tuple[str, str]] = []
    for number, attachment in enumerate(attached, 1):
        at = place if number == 1 else f"{place}, attachment {number}"
        try:
            texts.append((at, _attachment(attachment)))
        except Unreadable as error:
            yield SetAside(at, str(error))
    own = [resource.get("title"), resource.get("description") if not texts else None]
    own += [line for section in _list(resource.get("section")) for line in _section(section)]
    own.append(resource.get("conclusion"))
    if not texts and len([line for line in own if line]) <= bool(resource.get("title")):
        own.append(_narrative(resource))
    words = "\n".join(line for line in own if line)
    if words:
        at = place if not attached else f"{place}, words of its own"
        texts.append((at, words))
    if not texts and not attached:
        texts.append((place, ""))
    kind = "report" if type == "DiagnosticReport" else "note"
    language = resource.get("language")
    for at, text in texts:
        yield Piece(text, at, kind, person, language, _said(facts))


def _attachment(attachment: object) -> str:
    if not isinstance(attachment, Mapping) or not isinstance(attachment.get("data"), str):
        raise Unreadable("an attachment that lies elsewhere")
    type, _, rest = str(attachment.get("contentType") or "text/plain").partition(";")
    type = type.strip().lower()
    if type not in ("text/plain", "text/markdown", "text/html", "application/xhtml+xml"):
        raise Unreadable(f"an attachment of type {type if _MIME.fullmatch(type) else 'unknown'}")
    try:
        data = base64.b64decode(attachment["data"])
    except (binascii.Error, ValueError):
        raise Unreadable("an attachment that is no base64") from None
    charset = re.search(r"charset=\"?([\w.-]+)", rest)
    text, _ = decoded(data, charset[1].lower() if charset else None, None)
    return html_text(text) if "html" in type else text


def _section(section: Mapping[str, Any]) -> Iterator[str]:
    said = [line for line in (section.get("title"), _narrative(section)) if line]
    inner = [line for part in _list(section.get("section")) for line in _section(part)]
    if len(said) > bool(section.get("title")) or inner:  # a title alone says nothing
        yield from said
        yield from inner


def _narrative(resource: Resource) -> str:
    return html_text((resource.get("text") or {}).get("div") or "")


def _concept(concept: object) -> dict[str, Fact]:
    """A CodeableConcept as facts: its first coding, and further ones by number."""
    if not isinstance(concept, Mapping):
        return {}
    facts: dict[str, Fact] = {}
    for number, coding in enumerate(_list(concept.get("coding")), 1):
        end = "" if number == 1 else f"_{number}"
        facts |= {f"{name}{end}": coding.get(name) for name in ("code", "system", "display")}
    facts["display"] = concept.get("text") or facts.get("display") or concept.get("display")
    return facts


def _value(resource: Resource) -> dict[str, Fact]:
    quantity = resource.get("valueQuantity")
    if isinstance(quantity, Mapping):
        facts = {"value": quantity.get("value"), "unit": quantity.get("unit") or quantity.get("code")}
        return facts | {"comparator": quantity.get("comparator")}
    concept = resource.get("valueCodeableConcept")
    if isinstance(concept, Mapping):
        inner = _concept(concept)
        return {"value": inner.get("display") or inner.get("code"), "value_code": inner.get("code")}
    names = ("valueString", "valueBoolean", "valueInteger", "valueDateTime", "valueTime")
    return next(({"value": resource[name]} for name in names if name in resource), {})


def _date(resource: Resource, names: tuple[str, ...]) -> dict[str, Fact]:
    found = next((resource[name] for name in names if resource.get(name)), None)
    if isinstance(found, Mapping):
        return {"date": found.get("start"), "end": found.get("end")}
    return {"date": found}


def _shown(facts: Mapping[str, Fact]) -> str:
    display, code = facts.get("display"), facts.get("code")
    return f"{display} ({code})" if display and code else str(display or code or "not named")


def _measure(facts: Mapping[str, Fact]) -> str:
    if facts.get("value") is None:
        return ""
    parts = (facts.get("comparator"), facts.get("value"), facts.get("unit"))
    return " ".join(str(part) for part in parts if part is not None)


def _said(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    """The facts that say something; what is no single value, or no number, is none."""

    def speaks(value: object) -> bool:
        return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))

    return {name: value for name, value in facts.items() if speaks(value) and value != ""}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
