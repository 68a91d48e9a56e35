//! The proof (KP-10.13 and KP-10.14): what the running sshd is asked, what it said, and whether that is what its
//! configuration and the guard foretold. Necessary, never sufficient: the guard stands beside it.

use std::net::SocketAddr;

use super::effective::Method;
use super::foreign::foreign;
use super::observation::{Answer, Connection};
use super::outcome::{KeyProof, Proof, Reason, Refusal};
use super::public_key::PublicKey;
use super::trial::{ClientReport, KeyOffer};

/// What is asked for a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofPlan {
    /// For whom.
    pub user: String,
    /// The key that is put in place; `None` for a command without one.
    pub key: Option<PublicKey>,
    /// What sshd should say; `None` where it does not listen on loopback.
    pub forecast: Option<Forecast>,
}

/// What sshd should say to exactly the connection that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// Where it is asked.
    pub address: SocketAddr,
    /// As which connection `sshd -T` knows it.
    pub connection: Connection,
    /// What it offers.
    pub methods: Vec<Method>,
    /// Whether it says that it accepts the key, as a private sshd said; `None`: not known.
    pub accepts_key: Option<bool>,
}

/// What the ssh client saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The methods that sshd offered at first, by their names on the wire.
    pub methods: Vec<String>,
    /// Whether it said that it would accept the key; `None` where the key was not offered to it.
    pub accepts_key: Option<bool>,
}

/// Where a question stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is as foretold.
    AsForetold,
    /// It is not.
    Contradicted(String),
    /// There is none.
    NotTaken(String),
}

impl Forecast {
    /// The same by what sshd says now of the live files: a line of ours that goes shows only there.
    #[must_use]
    pub fn by(mut self, live: &Answer) -> Self {
        self.methods = live.effective.offered_methods();
        self
    }

    /// The answer to the key question against the forecast. That it is accepted where the guard would have refused
    /// harms nobody.
    pub fn judge_key(&self, said: &Result<Seen, String>) -> Verdict {
        match said {
            Err(why) => Verdict::NotTaken(why.clone()),
            Ok(Seen { accepts_key: None, .. }) => {
                Verdict::NotTaken("the key could not be offered: sshd takes no keys there, or the client has no algorithm for it".into())
            }
            Ok(Seen { accepts_key: Some(false), .. }) if self.accepts_key == Some(true) => Verdict::Contradicted(format!(
                "by its configuration sshd would accept the key, and the sshd that listens on {} refuses it; see sshd's \
                 log for the reason",
                self.address
            )),
            Ok(Seen { accepts_key: Some(_), .. }) => Verdict::AsForetold,
        }
    }

    /// The methods offered against the forecast.
    pub fn judge_methods(&self, said: &Result<Seen, String>) -> Verdict {
        let seen = match said {
            Err(why) => return Verdict::NotTaken(why.clone()),
            Ok(seen) => &seen.methods,
        };
        let differs = |method: &&Method| {
            seen.iter().any(|name| name == method.as_str()) != self.methods.contains(method)
        };
        if !Method::ALL.iter().any(|method| differs(&method)) {
            return Verdict::AsForetold;
        }
        let foretold: Vec<&str> = self.methods.iter().map(|method| method.as_str()).collect();
        Verdict::Contradicted(format!(
            "by its configuration sshd offers {}, and the sshd that listens on {} offers {}",
            shown(&foretold),
            self.address,
            shown(seen)
        ))
    }
}

fn shown(methods: &[impl AsRef<str>]) -> String {
    match methods {
        [] => "nothing".to_owned(),
        methods => foreign(&methods.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")),
    }
}

/// The failure by a contradiction.
pub fn contradicted(why: &str) -> Refusal {
    Refusal::new(
        Reason::ProofContradicted,
        format!("the running sshd contradicts what was set: {why}; all is as before"),
    )
}

/// A proof of which nothing was taken.
pub fn not_taken(why: impl Into<String>) -> Proof {
    Proof { key: KeyProof::NotTaken, methods: None, address: None, not_taken: Some(why.into()) }
}

/// What a client's log says of one question: the methods, and what became of the key.
///
/// # Errors
/// Why it got no answer, in its own words.
pub fn read(log: &str) -> Result<Seen, String> {
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
    Ok(Seen { methods, accepts_key })
}

#[cfg(test)]
mod tests {
    use super::super::connection::anybody;
    use super::*;

    const LIST: &str = "debug1: Authentications that can continue: publickey,password\r\n";

    fn seen(methods: &[&str], accepts_key: Option<bool>) -> Seen {
        Seen { methods: methods.iter().map(|&name| name.to_owned()).collect(), accepts_key }
    }

    #[test]
    fn reports_of_the_client() {
        let both = ["publickey", "password"];
        let offered = format!("{LIST}debug1: Offering public key: /k ED25519 SHA256:x explicit\n");
        for (report, expected) in [
            (LIST.to_owned(), Ok(seen(&both, None))),
            (
                format!("{offered}debug1: Server accepts key: /k ED25519 SHA256:x\n"),
                Ok(seen(&both, Some(true))),
            ),
            (format!("{offered}{LIST}u@h: Permission denied (publickey).\n"), Ok(seen(&both, Some(false)))),
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
            assert_eq!(read(&report), expected, "{report}");
        }
    }

    /// KP-10.14.
    #[test]
    fn answers_against_the_forecast() {
        let forecast = |methods: &[Method], accepts_key: bool| Forecast {
            address: SocketAddr::from(([127, 0, 0, 1], 22)),
            connection: anybody("root"),
            methods: methods.to_vec(),
            accepts_key: Some(accepts_key),
        };
        let key_alone = forecast(&[Method::PublicKey], true);
        let said = |methods: &[&str], accepts| Ok(seen(methods, accepts));
        assert_eq!(key_alone.judge_key(&said(&["publickey"], Some(true))), Verdict::AsForetold);
        assert!(matches!(key_alone.judge_key(&said(&["publickey"], Some(false))), Verdict::Contradicted(_)));
        assert!(matches!(key_alone.judge_key(&said(&["password"], None)), Verdict::NotTaken(_)));
        assert!(matches!(key_alone.judge_key(&Err("x".into())), Verdict::NotTaken(_)));
        let refused = forecast(&[Method::PublicKey], false);
        assert_eq!(refused.judge_key(&said(&["publickey"], Some(false))), Verdict::AsForetold);
        assert_eq!(refused.judge_key(&said(&["publickey"], Some(true))), Verdict::AsForetold);
        assert_eq!(
            key_alone.judge_methods(&said(&["publickey", "gssapi-with-mic"], None)),
            Verdict::AsForetold
        );
        for methods in [&["publickey", "password"] as &[&str], &["publickey", "keyboard-interactive"], &[]] {
            assert!(
                matches!(key_alone.judge_methods(&said(methods, None)), Verdict::Contradicted(_)),
                "{methods:?}"
            );
        }
    }
}
