//! The trusted signers of commands: a file in the format of ssh-keygen(1), "ALLOWED SIGNERS".
//!
//! One faulty line makes the whole file unusable, as it does for ssh-keygen. Such a line may be meant to limit a
//! signer, so the agent must not skip it.

use std::fmt;
use std::path::{Path, PathBuf};

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

use super::authorized_keys::split_options;
use super::local_time::LocalTimeZone;
use super::pattern::{ListMatch, match_pattern_list};
use super::public_key::{PublicKey, is_accepted_algorithm};

/// The parsed file.
#[derive(Debug)]
pub struct AllowedSigners {
    /// The path of the file.
    pub path: PathBuf,
    /// The signers, in the order of their lines.
    pub signers: Vec<Signer>,
    /// Valid lines that trust no signer here, with the cause.
    pub passed_over: Vec<FaultyLine>,
}

/// A key that may sign commands.
#[derive(Debug)]
pub struct Signer {
    /// The signer's line in the file, from 1.
    pub line: usize,
    /// The signer's key.
    pub key: PublicKey,
    namespaces: Option<String>,
    valid_after: Option<OffsetDateTime>,
    valid_before: Option<OffsetDateTime>,
}

/// Whether the agent accepts a signer's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignerValidity {
    /// The signer is valid.
    Valid,
    /// The signer is not valid for this namespace.
    OtherNamespace,
    /// The signer is not valid yet.
    TooEarly,
    /// The signer is no longer valid.
    TooLate,
    /// The answer depends on the time, which the agent does not know.
    TimeNeeded,
}

/// A faulty line, with cause and remedy. It is printed as one line of text and repeats nothing of the file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultyLine {
    /// The path of the file.
    pub path: PathBuf,
    /// The line's number, from 1.
    pub line: usize,
    /// Cause and remedy.
    pub why: String,
}

impl fmt::Display for FaultyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.why)
    }
}

impl std::error::Error for FaultyLine {}

impl Signer {
    /// Whether the signer may sign in this namespace now. Without `now`: whether it may sign at any time.
    pub fn validity(&self, namespace: &str, now: Option<OffsetDateTime>) -> SignerValidity {
        if self
            .namespaces
            .as_ref()
            .is_some_and(|namespaces| match_pattern_list(namespace, namespaces) != ListMatch::Yes)
        {
            return SignerValidity::OtherNamespace;
        }
        match now {
            // The period includes both of its ends, as ssh-keygen(1) says.
            Some(now) if self.valid_after.is_some_and(|after| now < after) => SignerValidity::TooEarly,
            Some(now) if self.valid_before.is_some_and(|before| now > before) => SignerValidity::TooLate,
            None if self.valid_after.is_some() || self.valid_before.is_some() => SignerValidity::TimeNeeded,
            _ => SignerValidity::Valid,
        }
    }
}

impl AllowedSigners {
    /// Parses the file's content. Times without a `Z` are in the guest's time zone, as for ssh-keygen(1). The
    /// function uses `zone` only for such times.
    ///
    /// # Errors
    /// The first line that does not follow ssh-keygen(1).
    pub fn parse(
        content: &[u8],
        path: &Path,
        zone: &Result<LocalTimeZone, String>,
    ) -> Result<Self, FaultyLine> {
        let mut read = Self { path: path.to_owned(), signers: Vec::new(), passed_over: Vec::new() };
        for (number, text) in String::from_utf8_lossy(content).lines().enumerate() {
            let line = number + 1;
            let told = |why: &str| FaultyLine { path: path.to_owned(), line, why: why.to_owned() };
            match parse_signer_line(text, zone).map_err(|why| told(&why))? {
                SignerLine::Empty => {}
                SignerLine::Ignored(why) => read.passed_over.push(told(why)),
                SignerLine::Signer(signer) => read.signers.push(Signer { line, ..signer }),
            }
        }
        Ok(read)
    }
}

enum SignerLine {
    Empty,
    Ignored(&'static str),
    Signer(Signer),
}

fn parse_signer_line(text: &str, zone: &Result<LocalTimeZone, String>) -> Result<SignerLine, String> {
    // ssh-keygen holds a line as a C string, so the line ends at a NUL.
    let text = text.split('\0').next().unwrap_or_default();
    let text = text.trim_matches([' ', '\t', '\r']);
    if text.is_empty() || text.starts_with('#') {
        return Ok(SignerLine::Empty);
    }
    let (principals, rest) = split_principals(text)?;
    if is_key_type(principals) {
        return Err(
            "the principals are missing; put a name in front of the key, as in `* ssh-ed25519 AAAA...`"
                .into(),
        );
    }
    let first = rest.split([' ', '\t']).next().unwrap_or_default();
    let (options, key) = match is_key_type(first) {
        true => ("", rest),
        false => split_options(rest).ok_or("a quote is not closed; close it")?,
    };
    let options = SignerOptions::parse(options, zone)?;
    if key.split([' ', '\t']).next().is_some_and(|kind| kind.contains("-cert-v0")) {
        return Err(
            "a certificate, and certificates are refused; put the signer's plain public key there".into()
        );
    }
    let key = PublicKey::parse_line(key)
        .map_err(|refusal| format!("the key is refused: {}; correct the line", refusal.message))?;
    if options.cert_authority {
        return Ok(SignerLine::Ignored(
            "a cert-authority trusts nobody here, since certificates are refused; list the signers' own keys",
        ));
    }
    if key.algorithm() == "ssh-rsa" {
        return Ok(SignerLine::Ignored(
            "an RSA key trusts nobody here, since RSA signatures are not verified; use an Ed25519 or ECDSA key",
        ));
    }
    let SignerOptions { namespaces, valid_after, valid_before, .. } = options;
    Ok(SignerLine::Signer(Signer { line: 0, key, namespaces, valid_after, valid_before }))
}

fn is_key_type(word: &str) -> bool {
    is_accepted_algorithm(word) || word == "ssh-dss" || word.contains("-cert-v0")
}

/// Splits the principals from the text behind them. They end at a blank, or at the quote that closes the first one. A
/// backslash has no special meaning there.
fn split_principals(text: &str) -> Result<(&str, &str), String> {
    const BLANKS: [char; 3] = [' ', '\t', '\r'];
    let end = text.find(|c| c == '"' || BLANKS.contains(&c)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let Some(quoted) = rest.strip_prefix('"') else { return Ok((word, rest.trim_start_matches(BLANKS))) };
    let (quoted, rest) = quoted.split_once('"').ok_or("a quote is not closed; close it")?;
    let whole = if word.is_empty() { quoted } else { word };
    Ok((whole, rest.trim_start_matches(BLANKS)))
}

#[derive(Default)]
struct SignerOptions {
    cert_authority: bool,
    namespaces: Option<String>,
    valid_after: Option<OffsetDateTime>,
    valid_before: Option<OffsetDateTime>,
}

impl SignerOptions {
    fn parse(text: &str, zone: &Result<LocalTimeZone, String>) -> Result<Self, String> {
        let mut options = Self::default();
        if text.is_empty() {
            return Ok(options);
        }
        let mut rest = text;
        loop {
            rest = options.parse_next_option(rest, zone)?;
            match rest.strip_prefix(',') {
                Some(behind) => rest = behind,
                None if rest.is_empty() => break,
                None => {
                    return Err("something stands behind an option; separate options by commas alone".into());
                }
            }
        }
        if let (Some(after), Some(before)) = (options.valid_after, options.valid_before)
            && before <= after
        {
            return Err("valid-before is not later than valid-after; correct one of them".into());
        }
        Ok(options)
    }

    /// Parses one option and returns the text behind it.
    fn parse_next_option<'t>(
        &mut self,
        text: &'t str,
        zone: &Result<LocalTimeZone, String>,
    ) -> Result<&'t str, String> {
        let end = text.find(['=', ',']).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        match name.to_ascii_lowercase().as_str() {
            "cert-authority" => {
                self.cert_authority = true;
                Ok(rest)
            }
            name @ "namespaces" => {
                let (value, rest) = parse_quoted_value(name, rest)?;
                set_option_once(&mut self.namespaces, name, value)?;
                Ok(rest)
            }
            name @ "valid-after" => {
                let (value, rest) = parse_quoted_value(name, rest)?;
                set_option_once(&mut self.valid_after, name, parse_timestamp(name, &value, zone)?)?;
                Ok(rest)
            }
            name @ "valid-before" => {
                let (value, rest) = parse_quoted_value(name, rest)?;
                set_option_once(&mut self.valid_before, name, parse_timestamp(name, &value, zone)?)?;
                Ok(rest)
            }
            _ => Err("neither a key type that is accepted nor an option that is known stands behind the principals; \
                      correct the line: ssh-keygen(1), \"ALLOWED SIGNERS\""
                .into()),
        }
    }
}

fn set_option_once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{name} is given twice; leave one")),
    }
}

/// Returns the value of `="…"`, in which `\"` is a quote, and the text behind it.
fn parse_quoted_value<'t>(name: &str, text: &'t str) -> Result<(String, &'t str), String> {
    let fault = || format!("the value of {name} is not in quotes; write {name}=\"...\"");
    let inside = text.strip_prefix("=\"").ok_or_else(fault)?;
    let mut value = String::new();
    let mut characters = inside.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' if value.is_empty() => {
                return Err(format!("the value of {name} is empty; leave the option out"));
            }
            '"' => return Ok((value, inside.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(characters.next_if(|(_, next)| *next == '"').map_or('\\', |(_, quote)| quote)),
            c => value.push(c),
        }
    }
    Err(fault())
}

/// Parses `YYYYMMDD` or `YYYYMMDDHHMM[SS]`: in UTC if a `Z` follows, else in the guest's time zone.
fn parse_timestamp(
    name: &str,
    text: &str,
    zone: &Result<LocalTimeZone, String>,
) -> Result<OffsetDateTime, String> {
    let fault =
        || format!("{name} is no time; write it as YYYYMMDD or YYYYMMDDHHMM[SS], with a Z behind for UTC");
    let upper = text.to_ascii_uppercase();
    let in_utc = upper.strip_suffix('Z').or_else(|| upper.strip_suffix("UTC"));
    let digits = in_utc.unwrap_or(&upper);
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(fault());
    }
    let number = |from: usize, to: usize| digits.get(from..to).map_or(Ok(0), str::parse::<u16>);
    let shown = (|| {
        let small = |from| u8::try_from(number(from, from + 2).ok()?).ok();
        let month = Month::try_from(small(4)?).ok()?;
        let date = Date::from_calendar_date(number(0, 4).ok()?.into(), month, small(6)?).ok()?;
        Some(PrimitiveDateTime::new(date, Time::from_hms(small(8)?, small(10)?, small(12)?).ok()?))
    })();
    let shown = shown.ok_or_else(fault)?;
    if in_utc.is_some() {
        return Ok(shown.assume_utc());
    }
    let remedy = "write the time in UTC, with a Z behind";
    match zone {
        Err(why) => Err(format!("{name} is a local time, and the time zone is not known ({why}); {remedy}")),
        Ok(zone) => zone.to_utc(shown).ok_or_else(|| {
            format!("{name} is a time that clocks here show twice or never, when they are set; {remedy}")
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF86eSkqX3I2gC8oUEbWaJ54JKEt/jagDdVjCuOifDfx";
    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCI9jzNlp5KiAb4JIO7tbA5Ru4POU1NtTpTwwDJ6bwE00PRuSHByNr3pzSsVsuMjEXahtFCMtycUvqC1+fqv/jWxZWpSi+3Ag7yKRvzHu9zAYNUPFHChXFfZNGrkNSLtRErjL2k5mPjwVax8q1WX0ZJEeSLuX2v0chA4xeQEOHCYx8cm+QaGdUTGbogTd3ao2lvwMssKvPrs2qaN8Fzb9TYt0mwITW71YyDSVpGTxDowIgkuaMU1lnTJzsAmCeZpMDfNTYUl2GLm1ypNAL4ASYADBnnV1pRSe+0GhSdSH1OOIJutkL4YwOjQVOEDkc3EEBY8SwVjrOrvcEbj/N5Z88r";

    fn parse_signers(text: &str) -> Result<AllowedSigners, FaultyLine> {
        AllowedSigners::parse(
            text.as_bytes(),
            Path::new("/etc/signers"),
            &LocalTimeZone::from_localtime(None),
        )
    }

    fn signer_with_options(options: &str) -> Signer {
        parse_signers(&format!("* {options} {KEY} platform\n")).unwrap().signers.pop().unwrap()
    }

    fn unix_time(seconds: i64) -> Option<OffsetDateTime> {
        Some(OffsetDateTime::from_unix_timestamp(seconds).unwrap())
    }

    #[test]
    fn signer_lines_are_parsed_in_order() {
        let text = format!(
            "# the platform's\n\n  \t\n\t# and ours\nops@example.com,!x@* {KEY} a comment, \"of his\"\r\n\"a b\" {KEY}\n\
             * NameSpaces=\"git,keypair-*\",valid-before=\"20300101Z\"\t{KEY}"
        );
        let read = parse_signers(&text).unwrap();
        assert_eq!(read.signers.iter().map(|signer| signer.line).collect::<Vec<_>>(), [5, 6, 7]);
        assert!(read.passed_over.is_empty());
    }

    #[test]
    fn namespaces_option_is_a_pattern_list() {
        for (options, standing) in [
            ("", SignerValidity::Valid),
            ("namespaces=\"keypair-agent\"", SignerValidity::Valid),
            ("namespaces=\"git,keypair-*\"", SignerValidity::Valid),
            ("namespaces=\"*,!keypair-agent\"", SignerValidity::OtherNamespace),
            ("namespaces=\"file\"", SignerValidity::OtherNamespace),
            ("namespaces=\"a\\\"b\"", SignerValidity::OtherNamespace),
        ] {
            assert_eq!(signer_with_options(options).validity("keypair-agent", None), standing, "{options}");
        }
        assert_eq!(
            signer_with_options("namespaces=\"a\\\"b\"").validity("a\"b", None),
            SignerValidity::Valid
        );
    }

    #[test]
    fn validity_period_includes_both_ends() {
        let signer = signer_with_options("valid-after=\"20300101Z\",valid-before=\"20300101000001utc\"");
        let begins = 1_893_456_000;
        for (now, standing) in [
            (unix_time(begins - 1), SignerValidity::TooEarly),
            (unix_time(begins), SignerValidity::Valid),
            (unix_time(begins + 1), SignerValidity::Valid),
            (unix_time(begins + 2), SignerValidity::TooLate),
            (None, SignerValidity::TimeNeeded),
        ] {
            assert_eq!(signer.validity("keypair-agent", now), standing, "{now:?}");
        }
    }

    #[test]
    fn local_timestamp_needs_known_time_zone() {
        let line = format!("* valid-after=\"203001011230\" {KEY}");
        let unknown = Err("no such file".to_owned());
        let fault = AllowedSigners::parse(line.as_bytes(), Path::new("/s"), &unknown).unwrap_err();
        assert!(fault.why.contains("no such file") && fault.why.ends_with("with a Z behind"), "{fault}");
        let utc = line.replace("1230\"", "1230Z\"");
        assert!(AllowedSigners::parse(utc.as_bytes(), Path::new("/s"), &unknown).is_ok());
    }

    #[test]
    fn faulty_line_error_names_line_without_key_text() {
        for (line, why) in [
            (KEY.to_owned(), "principals are missing"),
            ("*".into(), "the key is refused"),
            ("* ssh-ed25519".into(), "the key is refused"),
            ("* ssh-ed25519 AAAA".into(), "not a well-formed"),
            ("* ssh-dss AAAA".into(), "DSA"),
            (format!("* ssh-rsa {}", KEY.split(' ').nth(1).unwrap()), "another type"),
            (
                format!("* ssh-ed25519-cert-v01@openssh.com {}", KEY.split(' ').nth(1).unwrap()),
                "certificates are refused",
            ),
            (format!("* cert-authority ssh-ed25519-cert-v01@openssh.com {KEY}"), "certificates are refused"),
            (format!("* no-touch-required {KEY}"), "an option that is known"),
            (format!("* ssh-foo {KEY}"), "an option that is known"),
            (format!("* namespaces=keypair-agent {KEY}"), "not in quotes"),
            (format!("* namespaces {KEY}"), "not in quotes"),
            (format!("* namespaces=\"\" {KEY}"), "empty"),
            (format!("* namespaces=\"a\",namespaces=\"b\" {KEY}"), "twice"),
            (format!("* namespaces=\"a {KEY}"), "quote is not closed"),
            (format!("* namespaces=\"a\", {KEY}"), "an option that is known"),
            (format!("* cert-authority\"x\" {KEY}"), "an option that is known"),
            (format!("* namespaces=\"a\"x {KEY}"), "separate options by commas"),
            (format!("* valid-after=\"20300101Z\",valid-after=\"20300101Z\" {KEY}"), "twice"),
            (format!("* valid-after=\"20300101Z\",valid-before=\"20300101Z\" {KEY}"), "not later"),
            (format!("* valid-after=\"20300132Z\" {KEY}"), "no time"),
            (format!("* valid-after=\"2030\" {KEY}"), "no time"),
            (format!("* valid-after=\"+1d\" {KEY}"), "no time"),
            (format!("* valid-after=\"2030010199Z\" {KEY}"), "no time"),
            (format!("* valid-after=\"２０30０１０１\" {KEY}"), "no time"),
        ] {
            let fault = parse_signers(&format!("# one\n{line}\n* {KEY}\n")).unwrap_err();
            assert!(fault.to_string().starts_with("/etc/signers:2: "), "{fault}");
            assert!(fault.why.contains(why), "{line}: {fault}");
            assert!(fault.why.contains("; ") && !fault.why.contains("AAAAC3"), "{fault}");
        }
    }

    #[test]
    fn quoting_matches_ssh_keygen() {
        // Each case was compared with `ssh-keygen -Y verify` of OpenSSH 9.2.
        for (line, good) in [
            (format!("\"a b\"{KEY}"), true),
            (format!("a\"b c\" {KEY}"), true),
            (format!("a\\ {KEY}"), true),
            (format!("\"a\\\" {KEY}"), true),
            (format!("\"a \\\" b\" {KEY}"), false),
            (format!("\"a\"b {KEY}"), false),
            (format!("\"a {KEY}"), false),
            (format!("* {KEY}\0 x"), true),
            (format!("* namespaces=\"keypair-agent\"\0 {KEY}"), false),
            (format!("* namespaces=\"a \\\\\" x\" {KEY}"), true),
            (format!("* namespaces=\"a \\\\\" {KEY}"), false),
            (format!("* namespaces=\"a\\\\b\" {KEY}"), true),
        ] {
            assert_eq!(parse_signers(&line).is_ok_and(|read| read.signers.len() == 1), good, "{line:?}");
        }
        let empty = parse_signers(&format!("\0* {KEY}\n#\0\n")).unwrap();
        assert!(empty.signers.is_empty());
        let namespace = "a\\\\b";
        let backslashes = signer_with_options(&format!("namespaces=\"{namespace}\""));
        assert_eq!(backslashes.validity(namespace, None), SignerValidity::Valid);
    }

    #[test]
    fn ignored_lines_are_reported() {
        let read = parse_signers(&format!(
            "* cert-authority {KEY}\n* {RSA}\n* CERT-AUTHORITY,namespaces=\"a\" {KEY}\n"
        ))
        .unwrap();
        assert!(read.signers.is_empty());
        let said: Vec<(usize, bool)> =
            read.passed_over.iter().map(|line| (line.line, line.why.contains("RSA"))).collect();
        assert_eq!(said, [(1, false), (2, true), (3, false)]);
    }

    #[test]
    fn signers_parser_accepts_any_bytes() {
        use proptest::prelude::*;
        proptest!(|(options in "[a-z=\",\\\\ Z0-9-]{0,40}", bytes in proptest::collection::vec(any::<u8>(), 0..60))| {
            let _ = parse_signers(&format!("* {options} {KEY}"));
            let _ = AllowedSigners::parse(&bytes, Path::new("/s"), &LocalTimeZone::from_localtime(None));
        });
    }
}
