//! The proof (contract 6): what the running sshd is asked, what it said, and whether that is what its configuration
//! and the guard foretold. Necessary, never sufficient: the guard stands beside it.

use std::net::SocketAddr;

use super::effective::Method;
use super::observation::{Answer, Connection};
use super::outcome::{KeyProof, Proof, Reason, Refusal};
use super::public_key::PublicKey;

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
    /// Whether it says that it accepts the key.
    pub accepts_key: bool,
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
            Ok(Seen { accepts_key: Some(false), .. }) if self.accepts_key => Verdict::Contradicted(format!(
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
        methods => methods.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", "),
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

/// What `ssh -v` reported on standard error: the methods, and what became of the key. `offers_key` says whether it
/// had one to offer.
///
/// # Errors
/// Why it got no answer, in its own words.
pub fn read(report: &str, offers_key: bool) -> Result<Seen, String> {
    let after = |start: &'static str| {
        report.lines().filter_map(move |line| line.split_once(start)).map(|(_, rest)| rest.trim())
    };
    let mut lists = after("Authentications that can continue: ");
    let Some(first) = lists.next() else { return Err(why_not(report)) };
    let methods = first.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let accepted = after("Server accepts key: ").next().is_some();
    // Another list is the refusal of what was offered.
    let offered = after("Offering public key: ").next().is_some();
    let refused = offered && lists.next().is_some();
    let accepts_key = match (offers_key, accepted, refused) {
        (true, true, _) => Some(true),
        (true, false, true) => Some(false),
        _ => None,
    };
    Ok(Seen { methods, accepts_key })
}

/// The client's last words that are no debugging output; sshd's own where it sent some instead of its name.
fn why_not(report: &str) -> String {
    if let Some(line) = report.lines().find(|line| line.contains("Not allowed at this time")) {
        let said = line.split_once("Not allowed").map_or("", |(_, rest)| rest);
        return format!(
            "sshd refuses this address for now (PerSourcePenalties): Not allowed{}",
            said.trim_end()
        );
    }
    let plain =
        report.lines().rev().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("debug"));
    let mut plain = plain.filter(|line| !line.starts_with("OpenSSH_") && !line.starts_with("Warning: "));
    plain.next().map_or_else(|| "the connection brought no offer".to_owned(), str::to_owned)
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
        for (report, offers, expected) in [
            (LIST.to_owned(), false, Ok(seen(&both, None))),
            (LIST.to_owned(), true, Ok(seen(&both, None))),
            (
                format!("{LIST}debug1: Offering public key: /k ED25519 SHA256:x explicit\ndebug1: Server accepts key: /k ED25519 SHA256:x\n"),
                true,
                Ok(seen(&both, Some(true))),
            ),
            (
                format!("{LIST}debug1: Offering public key: ED25519 SHA256:x /k\n{LIST}u@h: Permission denied (publickey).\n"),
                true,
                Ok(seen(&both, Some(false))),
            ),
            (
                format!("{LIST}debug1: Offering public key: RSA SHA256:x /k\ndebug1: send_pubkey_test: no mutual signature algorithm\n"),
                true,
                Ok(seen(&both, None)),
            ),
            (
                "debug1: x\nssh: connect to host 127.0.0.1 port 22: Connection refused\r\n".to_owned(),
                true,
                Err("ssh: connect to host 127.0.0.1 port 22: Connection refused".to_owned()),
            ),
            (
                "debug1: kex_exchange_identification: banner line 0: Not allowed at this time\nkex_exchange_identification: Connection closed by remote host\n".to_owned(),
                false,
                Err("sshd refuses this address for now (PerSourcePenalties): Not allowed at this time".to_owned()),
            ),
            (String::new(), false, Err("the connection brought no offer".to_owned())),
        ] {
            assert_eq!(read(&report, offers), expected, "{report}");
        }
    }

    #[test]
    fn answers_against_the_forecast() {
        let forecast = |methods: &[Method], accepts_key| Forecast {
            address: SocketAddr::from(([127, 0, 0, 1], 22)),
            connection: anybody("root"),
            methods: methods.to_vec(),
            accepts_key,
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
