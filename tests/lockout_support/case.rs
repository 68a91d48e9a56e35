//! A case: a guest that is built from random pieces, and the commands that the test applies to it.

use std::fmt;

use crate::matrix_support::lab::MatrixEnvironment;
use crate::matrix_support::row::{KeyType, MatrixCase};
use crate::support::dice::SeededRng;

use super::pieces;

/// The commands of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandPlan {
    /// Attach K with `no`.
    AttachNo,
    /// Attach K with `no`, then detach it.
    AttachNoThenDetach,
    /// Attach K with `yes`, then the same with `no`.
    AttachYesThenNo,
    /// Attach K with `yes`, then replace it by L with `no`.
    AttachYesThenReplace,
    /// `setPasswordAuth no`, for the user's own keys.
    SetPasswordNo,
}

/// The place at which the main file includes the drop-ins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncludePlacement {
    AtEnd,
    Missing,
    InMatch,
    Relative,
    OneFile,
}

/// A part of a guest that can be left out. `@USER@` and `@HOME@` stand for the target user's values,
/// `@KEY@` for that user's own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A line of the main file, before the lines that every main file has.
    Global(String),
    /// A `Match` block at the end of the main file.
    Block(String),
    /// A file that the main file may include.
    DropIn(&'static str, String),
    Include(IncludePlacement),
    /// Arguments of sshd.
    Arguments(Vec<String>),
    /// The listening address of sshd: a configuration line, and the address and port for clients.
    Listen(String, &'static str, u16),
    /// Text at the end of a key file.
    Key(String, String),
    /// Another file.
    File(String, String),
    /// A sh script that runs in the guest before sshd starts.
    Setup(String),
    /// A sh script that runs after the start of sshd. sshd has not read its changes.
    Pending(String),
    /// A sh script that runs between the first command and the second.
    BetweenCommands(String),
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global(line) => write!(f, "{line}"),
            Self::Block(text) => write!(f, "{}", text.trim_end().replace('\n', " ; ")),
            Self::DropIn(name, text) => {
                write!(f, "sshd_config.d/{name}: {}", text.trim_end().replace('\n', " ; "))
            }
            Self::Include(place) => write!(f, "Include: {place:?}"),
            Self::Arguments(words) => write!(f, "sshd {}", words.join(" ")),
            Self::Listen(line, to, port) => write!(f, "{line} (clients go to {to} port {port})"),
            Self::Key(path, text) | Self::File(path, text) => {
                let text = text.replace(&"x".repeat(9000), "x...").escape_debug().to_string();
                write!(f, "{path}: {}", text.get(..200).unwrap_or(&text))
            }
            Self::Setup(script) => write!(f, "before: {script}"),
            Self::BetweenCommands(script) => write!(f, "between the commands: {script}"),
            Self::Pending(script) => write!(f, "not read yet: {script}"),
        }
    }
}

#[derive(Debug, Clone)]
pub struct FuzzCase {
    pub number: u64,
    pub user: &'static str,
    pub key: KeyType,
    pub course: CommandPlan,
    pub pieces: Vec<Piece>,
}

impl FuzzCase {
    /// A case that depends only on the seed, the number and the OpenSSH.
    pub fn new(lab: &MatrixEnvironment, seed: u64, number: u64) -> Self {
        let mut dice = SeededRng::from_seed(splitmix64(seed ^ splitmix64(number)));
        let user = if dice.next_below(5) < 2 { "root" } else { "u" };
        let key = match dice.next_below(10) {
            0 if lab.has_openssl => KeyType::Rsa,
            1 if lab.has_openssl => KeyType::Ecdsa,
            _ => KeyType::Ed25519,
        };
        let course = match dice.next_below(20) {
            0..=9 => CommandPlan::AttachNo,
            10..=11 => CommandPlan::AttachNoThenDetach,
            12..=13 => CommandPlan::AttachYesThenNo,
            14..=16 => CommandPlan::AttachYesThenReplace,
            _ => CommandPlan::SetPasswordNo,
        };
        let mut pieces = pieces::random_pieces(&mut dice, lab);
        if course == CommandPlan::SetPasswordNo {
            let file = format!("{}/.ssh/authorized_keys", home_directory(user));
            pieces.insert(0, Piece::Key(file, "@OTHER_KEY@\n".into()));
        }
        if matches!(
            course,
            CommandPlan::AttachNoThenDetach
                | CommandPlan::AttachYesThenNo
                | CommandPlan::AttachYesThenReplace
        ) && dice.next_below(2) == 0
        {
            pieces.push(pieces::random_intermediate_script(&mut dice));
        }
        Self { number, user, key, course, pieces }
    }

    /// The guest for this case.
    pub fn to_matrix_case(&self) -> MatrixCase {
        let mut row = MatrixCase::empty(&format!("case {}", self.number), self.user, self.key);
        let (mut first, mut behind, mut blocks) = (String::new(), String::new(), String::new());
        let mut include = Some("Include /etc/ssh/sshd_config.d/*.conf\n");
        // The only address of a named source that has a host name.
        row.setup = "echo '198.51.100.7 host.example.com' >>/etc/hosts\n\
                     test ! -e @HOME@/.ssh || { chown -R @USER@: @HOME@/.ssh; chmod 700 @HOME@/.ssh; \
                     chmod -f 600 @HOME@/.ssh/* || true; }\n"
            .into();
        for piece in &self.pieces {
            match piece {
                Piece::Global(line) => first += &format!("{line}\n"),
                Piece::Block(text) => blocks += text,
                Piece::DropIn(name, text) => {
                    *row.files.entry(format!("/etc/ssh/sshd_config.d/{name}")).or_default() += text;
                }
                Piece::Include(place) => {
                    let line = include.take().unwrap_or_default();
                    match place {
                        IncludePlacement::AtEnd => behind += line,
                        IncludePlacement::Missing => {}
                        IncludePlacement::InMatch => {
                            blocks += "Match all\nInclude /etc/ssh/sshd_config.d/*.conf\n"
                        }
                        IncludePlacement::Relative => include = Some("Include sshd_config.d/*.conf\n"),
                        IncludePlacement::OneFile => {
                            include = Some("Include /etc/ssh/sshd_config.d/50-other.conf\n");
                        }
                    }
                }
                Piece::Arguments(words) => row.arguments.extend(words.iter().cloned()),
                Piece::Listen(line, to, port) => {
                    first += &format!("{line}\n");
                    row.to = (*to).to_owned();
                    row.port = *port;
                }
                Piece::Key(path, text) => *row.files.entry(path.clone()).or_default() += text,
                Piece::File(path, text) => {
                    row.files.insert(path.clone(), text.clone());
                }
                Piece::Setup(script) => row.setup += &format!("{script}\n"),
                Piece::BetweenCommands(_) => {}
                Piece::Pending(script) => row.pending += &format!("{script}\n"),
            }
        }
        let include = include.unwrap_or_default();
        let main = format!(
            "{include}{first}PermitRootLogin yes\nUsePAM yes\nKbdInteractiveAuthentication no\n{behind}{blocks}"
        );
        row.files.insert("/etc/ssh/sshd_config".into(), main);
        let fill = |text: &str| self.expand_placeholders(text);
        row.files = row.files.iter().map(|(path, text)| (fill(path), fill(text))).collect();
        row.setup = fill(&row.setup);
        row.pending = fill(&row.pending);
        row.arguments = row.arguments.iter().map(|word| fill(word)).collect();
        row.keeps = ["/home", "/data", "/etc/pam.d", "/etc/passwd", "/etc/shadow"].map(Into::into).to_vec();
        row
    }

    fn expand_placeholders(&self, text: &str) -> String {
        text.replace("@USER@", self.user).replace("@HOME@", home_directory(self.user))
    }

    /// The script that runs between the commands, if any.
    pub fn intermediate_script(&self) -> Option<String> {
        self.pieces.iter().find_map(|piece| match piece {
            Piece::BetweenCommands(script) => Some(self.expand_placeholders(script)),
            _ => None,
        })
    }

    /// Whether a piece contains this text.
    pub fn mentions(&self, what: &str) -> bool {
        self.pieces.iter().any(|piece| format!("{piece:?}").contains(what))
    }

    /// Whether a script edits sshd's files without a reload of sshd.
    pub fn has_unread_edits(&self) -> bool {
        self.pieces.iter().any(|piece| match piece {
            Piece::Pending(_) => true,
            Piece::BetweenCommands(script) => script.contains("sshd_config") && !script.contains("-HUP"),
            _ => false,
        })
    }

    pub fn without_piece(&self, index: usize) -> Self {
        let mut smaller = self.clone();
        smaller.pieces.remove(index);
        smaller
    }
}

impl fmt::Display for FuzzCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {}, {:?}", self.course, self.user, self.key)?;
        self.pieces.iter().try_for_each(|piece| write!(f, "\n    | {piece}"))
    }
}

pub fn home_directory(user: &str) -> &'static str {
    if user == "root" { "/root" } else { "/home/u" }
}

/// Maps numbers that are close together to numbers that are far apart (splitmix64).
fn splitmix64(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
