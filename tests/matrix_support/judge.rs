//! Compares a result with the row and with the observations of real clients.

use std::collections::BTreeSet;
use std::process::Output;

use serde_json::Value;

use super::client::LoginAttempt;
use super::guest::combined_output;
use super::row::{AttachExpectation, LoginExpectation, MatrixCase, ProofKind};

/// Descriptions of the differences.
pub type Faults = Vec<String>;

/// Compares the result with the row's expectation.
pub fn compare_result(expected: &AttachExpectation, result: &Value) -> Faults {
    let mut faults = Faults::new();
    let status = if expected.reason.is_none() { "succeeded" } else { "failed" };
    let reason = expected.reason.as_deref();
    if result["status"] != status || result["reason"].as_str() != reason {
        let expected = reason.unwrap_or("success");
        let (got, message) = (result["reason"].as_str().unwrap_or("success"), &result["message"]);
        return vec![format!("expected {expected}, got {got}: {message}")];
    }
    let message = result["message"].as_str().unwrap_or_default();
    for part in &expected.says {
        if !message.contains(part.as_str()) {
            faults.push(format!("the message should say {part:?}: {message}"));
        }
    }
    let warnings = result["warnings"].as_array().cloned().unwrap_or_default();
    let mut got: Vec<&str> = warnings.iter().filter_map(|warning| warning["reason"].as_str()).collect();
    let mut wanted: Vec<&str> = expected.warnings.iter().map(String::as_str).collect();
    got.sort_unstable();
    wanted.sort_unstable();
    if got != wanted {
        faults.push(format!("expected the warnings {wanted:?}, got {got:?}: {}", result["warnings"]));
    }
    let places: Vec<String> = warnings
        .iter()
        .map(|warning| {
            let text = |name: &str| warning[name].as_str().unwrap_or_default().to_owned();
            format!("{} {} {} line {}", text("reason"), text("message"), text("file"), warning["line"])
        })
        .collect();
    for part in &expected.warns {
        if !places.iter().any(|place| place.contains(part.as_str())) {
            faults.push(format!("a warning should say {part:?}: {places:?}"));
        }
    }
    faults
}

/// `plan` must reach the same verdict as the attach.
pub fn compare_plan(planned: &Output, result: &Value) -> Faults {
    let succeeded = result["status"] == "succeeded";
    if planned.status.success() != succeeded {
        return vec![format!("says {}, and the attach: {result}", combined_output(planned))];
    }
    let said: Value = serde_json::from_slice(&planned.stdout).unwrap_or(Value::Null);
    if !succeeded && said["reason"] != result["reason"] {
        return vec![format!("is refused by {}, and the attach by {}", said["reason"], result["reason"])];
    }
    Faults::new()
}

/// `check` must reach the same verdict as an attach with `no`.
pub fn compare_check(checked: &Output, result: &Value) -> Faults {
    match checked.status.success() == (result["status"] == "succeeded") {
        true => Faults::new(),
        false => vec![format!("says {}, and the attach: {result}", combined_output(checked))],
    }
}

/// Compares the result's `effective` part with the offer to a client.
pub fn compare_effective(row: &MatrixCase, result: &Value, seen: &LoginAttempt) -> Faults {
    let Some(effective) = result["effective"].as_object() else {
        return vec![format!("nothing is said to be effective: {result}")];
    };
    let methods = [
        ("passwordAuthentication", "password"),
        ("kbdInteractiveAuthentication", "keyboard-interactive"),
        ("pubkeyAuthentication", "publickey"),
    ];
    let mut faults = Faults::new();
    // If sshd ends the connection, there is no offer; the row expects that.
    if seen.offers.is_empty() {
        return faults;
    }
    for (name, method) in methods {
        let is_on = effective[name] == true;
        let offered = seen.offers.contains(method);
        // A list of methods may hide a method that is on. It never shows one that is off.
        if is_on != offered && !(is_on && row.sets_authentication_methods()) {
            faults.push(format!("{name} is said to be {is_on}, and a client is offered {:?}", seen.offers));
        }
    }
    faults
}

/// Compares the proof with sshd's offer on loopback and with a real login by the key.
pub fn compare_proof(
    kind: ProofKind,
    both_due: bool,
    result: &Value,
    key_lets_in: bool,
    loopback: &LoginAttempt,
) -> Faults {
    let proof = &result["proof"];
    let mut faults = Faults::new();
    if kind == ProofKind::None {
        return if proof.is_null() { faults } else { vec![format!("proof: expected none, got {proof}")] };
    }
    let methods: Option<BTreeSet<String>> = proof["methods"]
        .as_array()
        .map(|methods| methods.iter().filter_map(Value::as_str).map(str::to_owned).collect());
    if methods.as_ref().is_some_and(|methods| *methods != loopback.offers) {
        faults.push(format!("proof: says {methods:?}, and loopback is offered {:?}", loopback.offers));
    }
    if key_lets_in && proof["key"] == "refused" && kind != ProofKind::Refused {
        faults.push(format!("proof: the key is refused, and lets in: {proof}"));
    }
    match kind {
        ProofKind::NotTaken if proof["notTaken"].is_null() => {
            faults.push(format!("proof: should say why it was not taken: {proof}"));
        }
        ProofKind::Refused if proof["key"] == "accepted" => {
            faults.push(format!("proof: the key is accepted from loopback, and would not let in: {proof}"));
        }
        ProofKind::Asked if both_due && (proof["key"] != "accepted" || methods.is_none()) => {
            faults.push(format!("proof: both questions should have been answered: {proof}"));
        }
        _ => {}
    }
    faults
}

/// Compares an observed login with the expected one; `None` if there was no attempt.
pub fn compare_login(
    expected: &LoginExpectation,
    key: Option<&LoginAttempt>,
    password: Option<&LoginAttempt>,
) -> Faults {
    let mut faults = Faults::new();
    if let (Some(offers), Some(seen)) = (&expected.offers, password.or(key)) {
        let wanted: BTreeSet<String> = offers.iter().cloned().collect();
        if wanted != seen.offers {
            faults.push(format!("expected the offer {wanted:?}, got {:?}", seen.offers));
        }
    }
    for (what, wanted, seen) in [("key", expected.key, key), ("password", expected.password, password)] {
        if let (Some(wanted), Some(seen)) = (wanted, seen)
            && wanted != seen.let_in
        {
            let end: Vec<&str> = seen.said.lines().rev().take(3).collect();
            faults.push(format!("a login with the {what}: expected {wanted}, got {}: {end:?}", seen.let_in));
        }
    }
    faults
}
