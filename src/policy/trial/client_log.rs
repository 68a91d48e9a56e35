//! Parses the log of one trial connection that `ssh -v -E FILE` wrote: ssh(1). Only the client's own lines count, and
//! they begin with a fixed text. Text from the server (banners, names, messages) comes after such a beginning, or is
//! in another file.

/// What happened to the client's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOffer {
    /// The client did not offer the key.
    NotOffered,
    /// The client and sshd have no signature algorithm in common for the key.
    NoMutualAlgorithm,
    /// sshd answered that it would accept the key.
    Accepted,
    /// sshd refused the key, or ended the connection after the offer.
    Refused,
}

/// The client's report on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientReport {
    /// The methods that sshd offered first. `None` if the connection ended before an offer.
    pub methods: Option<Vec<String>>,
    /// What happened to the key.
    pub offer: KeyOffer,
    /// Whether sshd let the user in without a key and without a password.
    pub authenticated_without_key: bool,
    /// The last line that is not debugging output.
    pub fault: Option<String>,
}

const METHODS_PREFIX: &str = "debug1: Authentications that can continue:";
const ACCEPTED_PREFIX: &str = "debug1: Server accepts key: ";
const NO_MUTUAL_PREFIXES: [&str; 2] =
    ["debug1: send_pubkey_test: no mutual signature", "debug1: sign_and_send_pubkey: no mutual signature"];
const AUTHENTICATED_PREFIXES: [&str; 3] =
    ["Authenticated to ", "Authenticated using ", "debug1: Authentication succeeded ("];

/// The maximum number of characters kept from one line of the client.
const MAX_FAULT_CHARS: usize = 200;

impl ClientReport {
    /// Parses a client's log.
    pub fn parse(log: &str) -> Self {
        let lines = || log.lines().map(str::trim_end);
        let mut lists = lines().filter_map(|line| line.strip_prefix(METHODS_PREFIX));
        let methods = lists.next().map(|list| {
            list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
        });
        let begins = |starts: &[&str]| lines().any(|line| starts.iter().any(|start| line.starts_with(start)));
        let was_offered = lines().any(is_offer_line);
        let offer = if begins(&[ACCEPTED_PREFIX]) {
            KeyOffer::Accepted
        } else if begins(&NO_MUTUAL_PREFIXES) || lines().any(is_skipped_key_line) {
            KeyOffer::NoMutualAlgorithm
        } else if was_offered {
            KeyOffer::Refused
        } else {
            KeyOffer::NotOffered
        };
        let fault = lines()
            .filter(|line| !line.is_empty() && !line.starts_with("debug"))
            .rfind(|line| !line.starts_with("OpenSSH_") && !line.starts_with("Warning: "))
            .map(|line| crate::policy::outcome::escape_unprintable(&truncate_fault(line)));
        Self { methods, offer, authenticated_without_key: begins(&AUTHENTICATED_PREFIXES), fault }
    }

    /// Returns true if sshd sent "Not allowed at this time" in place of its identification string: sshd_config(5)
    /// "PerSourcePenalties".
    pub fn is_penalised(log: &str) -> bool {
        log.lines().any(|line| {
            ["debug1: kex_exchange_identification: ", "debug1: ssh_exchange_identification: "]
                .iter()
                .any(|start| line.starts_with(start))
                && line.contains("Not allowed at this time")
        })
    }

    /// Returns true if no program listened at the address. The client's own line begins with "ssh".
    pub fn is_connection_refused(log: &str) -> bool {
        log.lines()
            .map(str::trim_end)
            .any(|line| line.starts_with("ssh: connect to host ") && line.ends_with(": Connection refused"))
    }

    /// Returns true if the client or the server does not support the requested key exchange.
    pub fn lacks_key_exchange(log: &str) -> bool {
        let starts = [
            "Unable to negotiate with ",
            "command-line: line 0: Bad SSH2 KexAlgorithms",
            "command-line line 0: Bad SSH2 KexAlgorithms",
        ];
        log.lines().any(|line| {
            starts.iter().any(|start| line.starts_with(start))
                && (line.contains("Bad SSH2 KexAlgorithms")
                    || line.contains("no matching key exchange method"))
        })
    }

    /// Returns true if sshd has let the client in. Then the answer is complete although the client still runs, because
    /// the agent never uses the connection for a login.
    pub fn is_authenticated(log: &str) -> bool {
        log.lines().any(|line| AUTHENTICATED_PREFIXES.iter().any(|start| line.starts_with(start)))
    }
}

/// Returns true if the line says that the client offers a key. Since OpenSSH 7.7 it is `Offering public key: PATH TYPE
/// …`. Before, it was `Offering TYPE public key: PATH` or `Offering public key: TYPE …`.
fn is_offer_line(line: &str) -> bool {
    line.strip_prefix("debug1: Offering ").is_some_and(|rest| {
        rest.starts_with("public key: ")
            || rest.split_once(' ').is_some_and(|(_, rest)| rest.starts_with("public key: "))
    })
}

/// Returns true if the client skips a key, because sshd accepts no signature algorithm of that kind: `Skipping TYPE
/// key PATH - corresponding algorithm not supported by server`.
fn is_skipped_key_line(line: &str) -> bool {
    line.starts_with("debug1: Skipping ")
        && line.ends_with(" - corresponding algorithm not supported by server")
}

fn truncate_fault(line: &str) -> String {
    line.chars().take(MAX_FAULT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHODS_LINE: &str = "debug1: Authentications that can continue: publickey,password\r\n";

    fn parse_offer(log: &str) -> KeyOffer {
        ClientReport::parse(log).offer
    }

    #[test]
    fn key_offer_is_parsed_for_every_release() {
        let accepted_10 = format!(
            "{METHODS_LINE}debug1: Offering public key: /k ED25519 SHA256:x explicit\r\ndebug1: Server accepts key: /k ED25519 SHA256:x explicit\r\n"
        );
        let accepted_7_4 = format!(
            "{METHODS_LINE}debug1: Offering ED25519 public key: /k\r\ndebug1: Server accepts key: pkalg ssh-ed25519 blen 51\r\n"
        );
        let refused_7_6 =
            format!("{METHODS_LINE}debug1: Offering public key: ED25519 SHA256:x /k\r\n{METHODS_LINE}");
        let cut_off = format!(
            "{METHODS_LINE}debug1: Offering public key: /k ED25519 SHA256:x explicit\r\nReceived disconnect from 192.0.2.2 port 22:2: Too many authentication failures\r\n"
        );
        let no_algorithm = format!(
            "{METHODS_LINE}debug1: Offering public key: /k RSA SHA256:x explicit\r\ndebug1: send_pubkey_test: no mutual signature algorithm\r\n"
        );
        let skipped = format!(
            "{METHODS_LINE}debug1: Skipping ssh-rsa key /k - corresponding algorithm not supported by server\r\n"
        );
        for (log, expected) in [
            (accepted_10, KeyOffer::Accepted),
            (accepted_7_4, KeyOffer::Accepted),
            (refused_7_6, KeyOffer::Refused),
            (cut_off, KeyOffer::Refused),
            (no_algorithm, KeyOffer::NoMutualAlgorithm),
            (skipped, KeyOffer::NoMutualAlgorithm),
            (METHODS_LINE.to_owned(), KeyOffer::NotOffered),
            (String::new(), KeyOffer::NotOffered),
        ] {
            assert_eq!(parse_offer(&log), expected, "{log}");
        }
    }

    #[test]
    fn server_text_does_not_change_key_offer() {
        let log = format!(
            "debug1: Remote protocol version 2.0, remote software version Server accepts key: x\r\n\
             debug1: kex_exchange_identification: banner line 0: debug1: Server accepts key: x\r\n\
             debug1: Remote: debug1: Server accepts key: x\r\n{METHODS_LINE}\
             debug1: Offering public key: /k ED25519 SHA256:x explicit\r\n{METHODS_LINE}"
        );
        let report = ClientReport::parse(&log);
        assert_eq!(report.offer, KeyOffer::Refused);
        assert_eq!(report.methods, Some(vec!["publickey".to_owned(), "password".to_owned()]));
        assert!(!ClientReport::lacks_key_exchange("debug1: Remote: no matching key exchange method\r\n"));
    }

    #[test]
    fn login_without_key_is_detected() {
        for line in [
            "debug1: Authentication succeeded (none).\r\n",
            "Authenticated to h ([192.0.2.2]:22) using \"none\".\r\n",
        ] {
            assert!(ClientReport::parse(line).authenticated_without_key, "{line}");
            assert!(ClientReport::is_authenticated(line));
        }
        assert!(!ClientReport::parse(METHODS_LINE).authenticated_without_key);
    }

    #[test]
    fn fault_is_last_line_without_debug() {
        let log = "OpenSSH_9.2\r\ndebug1: x\r\nssh: connect to host 127.0.0.1 port 9: Connection refused\r\n";
        assert_eq!(
            ClientReport::parse(log).fault.as_deref(),
            Some("ssh: connect to host 127.0.0.1 port 9: Connection refused")
        );
        assert!(ClientReport::lacks_key_exchange(
            "Unable to negotiate with 192.0.2.2 port 22: no matching key exchange method found. Their offer: x\r\n"
        ));
        assert!(ClientReport::lacks_key_exchange(
            "command-line: line 0: Bad SSH2 KexAlgorithms 'curve25519-sha256'.\r\n"
        ));
    }
}
