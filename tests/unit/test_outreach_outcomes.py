from pipelines.outreach import outcomes


def test_each_lead_has_an_outcome():
    leads = [{"email": email} for email in ("sent@x", "bad@x", "lost@x", "unverified@x")]
    verified = [
        {"email": "sent@x", "verification": "ok"},
        {"email": "bad@x", "verification": "disposable"},
        {"email": "lost@x", "verification": "catch_all"},
    ]
    sent = [{"email": "sent@x", "verification": "ok", "text": "Hello", "instantly_id": "i1"}]
    rows = outcomes(leads, verified, sent)
    assert [(row["email"], row["status"], row["instantly_id"]) for row in rows] == [
        ("sent@x", "sent", "i1"),
        ("bad@x", "undeliverable", None),
        ("lost@x", "failed", None),
        ("unverified@x", "failed", None),
    ]
