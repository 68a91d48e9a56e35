//! The proof (KP-10.13 and KP-10.14): the queries to the running sshd, its answers, and whether they match the
//! forecast from its configuration and the guard. The proof is necessary but not sufficient, so the guard is needed
//! too.

use std::net::SocketAddr;

use super::effective::AuthMethod;
use super::foreign::sanitize_text;
use super::observation::{Connection, SshdAnswer};
use super::outcome::{KeyAcceptance, ProbeReport, Reason, Refusal};
use super::public_key::PublicKey;
use super::trial::{ClientReport, KeyOffer};

/// The queries for a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbePlan {
    /// The user that the queries name.
    pub user: String,
    /// The key that the command puts in place. `None` for a command without a key.
    pub key: Option<PublicKey>,
    /// The expected answers. `None` if sshd does not listen on loopback.
    pub forecast: Option<ExpectedProbe>,
}

/// The answers expected for exactly the connection that the agent opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedProbe {
    /// The address to which the agent connects.
    pub address: SocketAddr,
    /// The same connection in the form of `sshd -T -C`.
    pub connection: Connection,
    /// The methods that sshd offers.
    pub methods: Vec<AuthMethod>,
    /// Whether sshd accepts the key, according to a private sshd. `None` if this is not known.
    pub accepts_key: Option<bool>,
}

/// The observations of the ssh client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// The methods that sshd offered at first, with their names on the wire.
    pub methods: Vec<String>,
    /// Whether sshd said that it would accept the key. `None` if the client did not offer the key.
    pub accepts_key: Option<bool>,
}

/// The result of one query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeVerdict {
    /// The answer matches the forecast.
    AsExpected,
    /// The answer contradicts the forecast.
    Contradicted(String),
    /// There is no answer.
    NotTaken(String),
}

impl ExpectedProbe {
    /// The same forecast, with the methods of sshd's present answer for the live files. The removal of a line of the
    /// agent's has an effect only there.
    #[must_use]
    pub fn with_live_methods(mut self, live: &SshdAnswer) -> Self {
        self.methods = live.effective.offered_methods();
        self
    }

    /// Compares the answer about the key with the forecast. An accepted key does no harm if the guard would have
    /// refused it.
    pub fn check_key(&self, said: &Result<ProbeResult, String>) -> ProbeVerdict {
        match said {
            Err(why) => ProbeVerdict::NotTaken(why.clone()),
            Ok(ProbeResult { accepts_key: None, .. }) => {
                ProbeVerdict::NotTaken("the key could not be offered: sshd takes no keys there, or the client has no algorithm for it".into())
            }
            Ok(ProbeResult { accepts_key: Some(false), .. }) if self.accepts_key == Some(true) => ProbeVerdict::Contradicted(format!(
                "by its configuration sshd would accept the key, and the sshd that listens on {} refuses it; see sshd's \
                 log for the reason",
                self.address
            )),
            Ok(ProbeResult { accepts_key: Some(_), .. }) => ProbeVerdict::AsExpected,
        }
    }

    /// Compares the offered methods with the forecast.
    pub fn check_methods(&self, said: &Result<ProbeResult, String>) -> ProbeVerdict {
        let seen = match said {
            Err(why) => return ProbeVerdict::NotTaken(why.clone()),
            Ok(seen) => &seen.methods,
        };
        let differs = |method: &&AuthMethod| {
            seen.iter().any(|name| name == method.as_str()) != self.methods.contains(method)
        };
        if !AuthMethod::ALL.iter().any(|method| differs(&method)) {
            return ProbeVerdict::AsExpected;
        }
        let foretold: Vec<&str> = self.methods.iter().map(|method| method.as_str()).collect();
        ProbeVerdict::Contradicted(format!(
            "by its configuration sshd offers {}, and the sshd that listens on {} offers {}",
            format_methods(&foretold),
            self.address,
            format_methods(seen)
        ))
    }
}

fn format_methods(methods: &[impl AsRef<str>]) -> String {
    match methods {
        [] => "nothing".to_owned(),
        methods => sanitize_text(&methods.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")),
    }
}

/// The refusal for a contradicted forecast.
pub fn probe_contradicted_refusal(why: &str) -> Refusal {
    Refusal::new(
        Reason::ProofContradicted,
        format!("the running sshd contradicts what was set: {why}; all is as before"),
    )
}

/// The report of a proof for which no query was sent or answered.
pub fn probe_not_taken(why: impl Into<String>) -> ProbeReport {
    ProbeReport { key: KeyAcceptance::NotTaken, methods: None, address: None, not_taken: Some(why.into()) }
}

/// Parses the client's log of one query: the methods, and whether sshd accepted the key.
///
/// # Errors
/// Why the client got no answer, in the client's own words.
pub fn parse_client_log(log: &str) -> Result<ProbeResult, String> {
    if ClientReport::is_penalised(log) {
        return Err("sshd refuses this address for now (PerSourcePenalties)".to_owned());
    }
    let report = ClientReport::parse(log);
    if report.authenticated_without_key {
        return Err("sshd lets the user in without a key or a password (PermitEmptyPasswords)".to_owned());
    }
    let Some(methods) = report.methods else {
        return Err(report.fault.unwrap_or_else(|| "the connection brought no offer".to_owned()));
    };
    let accepts_key = match report.offer {
        KeyOffer::Accepted => Some(true),
        KeyOffer::Refused | KeyOffer::NoMutualAlgorithm => Some(false),
        KeyOffer::NotOffered => None,
    };
    Ok(ProbeResult { methods, accepts_key })
}

#[cfg(test)]
mod tests {
    use super::super::connection::default_neutral_connection;
    use super::*;

    const METHODS_LOG_LINE: &str = "debug1: Authentications that can continue: publickey,password\r\n";

    fn probe_result(methods: &[&str], accepts_key: Option<bool>) -> ProbeResult {
        ProbeResult { methods: methods.iter().map(|&name| name.to_owned()).collect(), accepts_key }
    }

    #[test]
    fn client_log_is_parsed() {
        let both = ["publickey", "password"];
        let offered =
            format!("{METHODS_LOG_LINE}debug1: Offering public key: /k ED25519 SHA256:x explicit\n");
        for (report, expected) in [
            (METHODS_LOG_LINE.to_owned(), Ok(probe_result(&both, None))),
            (
                format!("{offered}debug1: Server accepts key: /k ED25519 SHA256:x\n"),
                Ok(probe_result(&both, Some(true))),
            ),
            (
                format!("{offered}{METHODS_LOG_LINE}u@h: Permission denied (publickey).\n"),
                Ok(probe_result(&both, Some(false))),
            ),
            (
                "debug1: x\nssh: connect to host 127.0.0.1 port 22: Connection refused\r\n".to_owned(),
                Err("ssh: connect to host 127.0.0.1 port 22: Connection refused".to_owned()),
            ),
            (
                "debug1: kex_exchange_identification: banner line 0: Not allowed at this time\n".to_owned(),
                Err("sshd refuses this address for now (PerSourcePenalties)".to_owned()),
            ),
            (String::new(), Err("the connection brought no offer".to_owned())),
        ] {
            assert_eq!(parse_client_log(&report), expected, "{report}");
        }
    }

    /// KP-10.14.
    #[test]
    fn probe_answers_are_compared_with_expectation() {
        let forecast = |methods: &[AuthMethod], accepts_key: bool| ExpectedProbe {
            address: SocketAddr::from(([127, 0, 0, 1], 22)),
            connection: default_neutral_connection("root"),
            methods: methods.to_vec(),
            accepts_key: Some(accepts_key),
        };
        let key_alone = forecast(&[AuthMethod::PublicKey], true);
        let said = |methods: &[&str], accepts| Ok(probe_result(methods, accepts));
        assert_eq!(key_alone.check_key(&said(&["publickey"], Some(true))), ProbeVerdict::AsExpected);
        assert!(matches!(
            key_alone.check_key(&said(&["publickey"], Some(false))),
            ProbeVerdict::Contradicted(_)
        ));
        assert!(matches!(key_alone.check_key(&said(&["password"], None)), ProbeVerdict::NotTaken(_)));
        assert!(matches!(key_alone.check_key(&Err("x".into())), ProbeVerdict::NotTaken(_)));
        let refused = forecast(&[AuthMethod::PublicKey], false);
        assert_eq!(refused.check_key(&said(&["publickey"], Some(false))), ProbeVerdict::AsExpected);
        assert_eq!(refused.check_key(&said(&["publickey"], Some(true))), ProbeVerdict::AsExpected);
        assert_eq!(
            key_alone.check_methods(&said(&["publickey", "gssapi-with-mic"], None)),
            ProbeVerdict::AsExpected
        );
        for methods in [&["publickey", "password"] as &[&str], &["publickey", "keyboard-interactive"], &[]] {
            assert!(
                matches!(key_alone.check_methods(&said(methods, None)), ProbeVerdict::Contradicted(_)),
                "{methods:?}"
            );
        }
    }
}
