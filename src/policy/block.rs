//! The agent's block in a file that it does not own. The agent finds the block by its markers, puts it at the top,
//! and removes it without a change to any other byte (KP-5.5 and KP-6.12).

use serde::{Deserialize, Serialize};

use super::types::KeyName;

/// The start of a begin marker. A name and an explanation may follow.
pub const BEGIN_MARKER: &str = "# BEGIN keypair-agent";
/// The start of an end marker.
pub const END_MARKER: &str = "# END keypair-agent";

/// The UTF-8 byte order mark that some editors leave at the top of a file.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Bytes of the agent's and their position in the file before an edit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The offset in the file before the edit.
    pub offset: usize,
    /// The bytes.
    #[serde(with = "base64_bytes")]
    pub bytes: Vec<u8>,
}

/// An edit of a file that the agent does not own: it removes the agent's segments and puts the agent's block at the
/// top. The edit has an inverse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockEdit {
    /// The removed segments, in the order of their offsets.
    pub removed: Vec<Segment>,
    /// The bytes inserted at the top: whole lines, or nothing.
    #[serde(with = "base64_bytes")]
    pub inserted: Vec<u8>,
}

impl BlockEdit {
    /// Returns the file after the edit.
    pub fn apply(&self, content: &[u8]) -> Vec<u8> {
        let mut edited = Vec::with_capacity(self.inserted.len() + content.len());
        edited.extend_from_slice(&self.inserted);
        let mut kept_from = 0;
        for segment in &self.removed {
            edited.extend_from_slice(content.get(kept_from..segment.offset).unwrap_or_default());
            kept_from = segment.offset + segment.bytes.len();
        }
        edited.extend_from_slice(content.get(kept_from..).unwrap_or_default());
        edited
    }

    /// Returns the file before the edit, from the output of [`Self::apply`]. `None` if `edited` is not such an
    /// output.
    pub fn revert(&self, edited: &[u8]) -> Option<Vec<u8>> {
        let mut rest = edited.strip_prefix(self.inserted.as_slice())?;
        let mut content = Vec::with_capacity(rest.len());
        for segment in &self.removed {
            let (before, after) = rest.split_at_checked(segment.offset.checked_sub(content.len())?)?;
            content.extend_from_slice(before);
            content.extend_from_slice(&segment.bytes);
            rest = after;
        }
        content.extend_from_slice(rest);
        Some(content)
    }

    /// The inverse for a file that changed after the edit. `found` are the agent's segments in the present file.
    /// `Some` if they are exactly what this edit inserted: the inverse removes them and puts the segments that the
    /// edit removed at the top again. `None` if they are something else, which the agent must leave alone. `is_same`
    /// says whether two forms of the agent's lines mean the same.
    pub fn revert_edited(
        &self,
        now: &[u8],
        found: Vec<Segment>,
        is_same: impl Fn(&[u8], &[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let before = join_segments(&self.removed);
        let current = join_segments(&found);
        if is_same(&current, &before) {
            return Some(now.to_vec());
        }
        is_same(&current, &self.inserted).then(|| prepend_lines(&before, &remove_segments(now, found)))
    }
}

/// A line that marks the beginning or the end of the agent's block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marker {
    /// `# BEGIN keypair-agent …`, and the key pair's name if the line has one.
    Begin(Option<KeyName>),
    /// `# END keypair-agent …`.
    End,
}

/// Parses a line as a marker of the agent's, if it is one.
pub fn parse_marker(line: &[u8]) -> Option<Marker> {
    let text = std::str::from_utf8(line).ok()?.trim();
    let rest_of =
        |mark: &str| text.strip_prefix(mark).filter(|rest| rest.is_empty() || rest.starts_with(' '));
    if let Some(rest) = rest_of(BEGIN_MARKER) {
        return Some(Marker::Begin(rest.split_ascii_whitespace().next().and_then(|name| name.parse().ok())));
    }
    rest_of(END_MARKER).map(|_| Marker::End)
}

/// A line of a file: its start (behind a byte order mark) and its bytes, including the newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLine<'a> {
    /// The offset of the line's first byte.
    pub offset: usize,
    /// The line's bytes.
    pub bytes: &'a [u8],
}

/// The lines of a file.
pub fn split_lines(content: &[u8]) -> impl Iterator<Item = FileLine<'_>> {
    let mut offset = first_line_offset(content);
    content.get(offset..).unwrap_or_default().split_inclusive(|byte| *byte == b'\n').map(move |bytes| {
        let line = FileLine { offset, bytes };
        offset += bytes.len();
        line
    })
}

/// The offset of the first line.
fn first_line_offset(content: &[u8]) -> usize {
    if content.starts_with(BOM) { BOM.len() } else { 0 }
}

/// Whether the first line follows a byte order mark.
pub fn has_bom(content: &[u8]) -> bool {
    content.starts_with(BOM)
}

/// A line that is a marker.
struct MarkerLine {
    offset: usize,
    end: usize,
    begins: bool,
}

/// All segments of the agent's in `content`. These are the markers, the lines between a pair of markers that
/// `is_ours` recognises, and the unbroken run of such lines beside a marker without its counterpart. They never
/// include lines of others.
///
/// The file may have millions of lines. So the function stores only the markers and examines each line only a few
/// times.
pub fn find_block_segments(content: &[u8], mut is_ours: impl FnMut(&[u8]) -> bool) -> Vec<Segment> {
    let markers: Vec<MarkerLine> = split_lines(content)
        .filter_map(|line| {
            let begins = matches!(parse_marker(line.bytes)?, Marker::Begin(_));
            Some(MarkerLine { offset: line.offset, end: line.offset + line.bytes.len(), begins })
        })
        .collect();
    let between = |from: usize, to: usize| {
        let bytes = content.get(from..to).unwrap_or_default();
        let mut offset = from;
        bytes.split_inclusive(|byte| *byte == b'\n').map(move |bytes| {
            let line = FileLine { offset, bytes };
            offset += bytes.len();
            line
        })
    };
    let mut found = SegmentCollector { content, segments: Vec::new() };
    let mut markers = markers.iter().peekable();
    while let Some(at) = markers.next() {
        if !at.begins {
            let from = found.end_offset().max(first_line_offset(content));
            let beside = lines_reversed(content, from, at.offset);
            let first = beside.take_while(|line| is_ours(line.bytes)).last();
            found.push_range(first.map_or(at.offset, |line| line.offset), at.end);
            continue;
        }
        found.push_range(at.offset, at.end);
        match markers.next_if(|next| !next.begins) {
            Some(end) => {
                for inner in between(at.end, end.offset) {
                    if is_ours(inner.bytes) {
                        found.push_range(inner.offset, inner.offset + inner.bytes.len());
                    }
                }
                found.push_range(end.offset, end.end);
            }
            None => {
                let limit = markers.peek().map_or(content.len(), |next| next.offset);
                for beside in between(at.end, limit).take_while(|line| is_ours(line.bytes)) {
                    found.push_range(beside.offset, beside.offset + beside.bytes.len());
                }
            }
        }
    }
    found.segments
}

/// The lines that `is_picked` selects. Adjacent lines form one segment.
pub fn select_lines(content: &[u8], mut is_picked: impl FnMut(&[u8]) -> bool) -> Vec<Segment> {
    let mut found = SegmentCollector { content, segments: Vec::new() };
    for line in split_lines(content).filter(|line| is_picked(line.bytes)) {
        found.push_range(line.offset, line.offset + line.bytes.len());
    }
    found.segments
}

/// The lines of a part of the file, the last one first. The part begins and ends with whole lines.
fn lines_reversed(content: &[u8], from: usize, mut to: usize) -> impl Iterator<Item = FileLine<'_>> {
    std::iter::from_fn(move || {
        let part = content.get(from..to).filter(|part| !part.is_empty())?;
        let before = part.get(..part.len() - 1).unwrap_or_default();
        let offset = from + before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = FileLine { offset, bytes: content.get(offset..to)? };
        to = offset;
        Some(line)
    })
}

/// Collects the agent's segments in the order of their offsets.
struct SegmentCollector<'c> {
    content: &'c [u8],
    segments: Vec<Segment>,
}

impl SegmentCollector<'_> {
    /// The end of the last segment.
    fn end_offset(&self) -> usize {
        self.segments.last().map_or(0, |last| last.offset + last.bytes.len())
    }

    /// Adds a range. A range directly behind the last segment becomes part of it.
    fn push_range(&mut self, from: usize, to: usize) {
        let bytes = self.content.get(from..to).unwrap_or_default();
        let is_next = self.end_offset() == from;
        match self.segments.last_mut() {
            Some(last) if is_next => last.bytes.extend_from_slice(bytes),
            _ => self.segments.push(Segment { offset: from, bytes: bytes.to_vec() }),
        }
    }
}

/// The bytes of these segments, concatenated.
pub fn join_segments(segments: &[Segment]) -> Vec<u8> {
    segments.iter().flat_map(|segment| segment.bytes.iter().copied()).collect()
}

/// Returns the file without these segments.
pub fn remove_segments(content: &[u8], segments: Vec<Segment>) -> Vec<u8> {
    BlockEdit { removed: segments, inserted: Vec::new() }.apply(content)
}

/// Puts whole lines in front of the rest of a file. A line without a newline was the last one before, and gets a
/// newline if it no longer is.
pub fn prepend_lines(lines: &[u8], rest: &[u8]) -> Vec<u8> {
    let ends = lines.last().is_none_or(|last| *last == b'\n') || rest.is_empty();
    [lines, if ends { b"" } else { b"\n" }, rest].concat()
}

/// Bytes as base64 text, because a marker line that a user edited may contain any byte.
pub mod base64_bytes {
    use base64ct::{Base64, Encoding};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the bytes.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Base64::encode_string(bytes))
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// If the text is not base64.
    pub fn deserialize<'de, D: Deserializer<'de>, B: From<Vec<u8>>>(deserializer: D) -> Result<B, D::Error> {
        let text = String::deserialize(deserializer)?;
        Base64::decode_vec(&text).map(B::from).map_err(|_| D::Error::custom("not base64"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn is_equal(one: &[u8], other: &[u8]) -> bool {
        one == other
    }

    fn is_managed_line(line: &[u8]) -> bool {
        line.starts_with(b"ours")
    }

    fn remove_managed_lines(content: &str) -> String {
        let edit = BlockEdit {
            removed: find_block_segments(content.as_bytes(), is_managed_line),
            inserted: Vec::new(),
        };
        String::from_utf8(edit.apply(content.as_bytes())).unwrap()
    }

    const B: &str = "# BEGIN keypair-agent k (why)\n";
    const E: &str = "# END keypair-agent k\n";

    #[test]
    fn removal_takes_only_managed_lines() {
        for (content, left) in [
            (format!("{B}ours\n{E}theirs\n"), "theirs\n"),
            (format!("theirs\n{B}ours\n{E}theirs"), "theirs\ntheirs"),
            (format!("{B}theirs\nours\nmore\n{E}"), "theirs\nmore\n"),
            (format!("{B}ours\ntheirs\n"), "theirs\n"),
            (format!("theirs\nours\n{E}theirs\n"), "theirs\ntheirs\n"),
            (format!("{B}{B}ours\n{E}x"), "x"),
            (format!("{B}ours\n{E}{E}x"), "x"),
            (format!("{B}ours\n{B}ours\n{E}x"), "x"),
            (format!("{B}x\ny\n"), "x\ny\n"),
            (format!("\u{feff}{B}ours\n{E}x\n"), "\u{feff}x\n"),
            (format!("{}ours\r\n{}x\r\n", B.replace('\n', "\r\n"), E.replace('\n', "\r\n")), "x\r\n"),
            ("ours\n# BEGIN keypair-agents\n".into(), "ours\n# BEGIN keypair-agents\n"),
            (format!("x\n{B}ours\n{}", E.trim_end()), "x\n"),
        ] {
            assert_eq!(remove_managed_lines(&content), left, "{content:?}");
        }
    }

    #[test]
    fn revert_of_edited_file_keeps_foreign_lines() {
        let edit = BlockEdit { removed: Vec::new(), inserted: format!("{B}ours\n{E}").into_bytes() };
        let now = format!("new\n{B}ours\n{E}old\n");
        let found = find_block_segments(now.as_bytes(), is_managed_line);
        assert_eq!(edit.revert_edited(now.as_bytes(), found, is_equal).unwrap(), b"new\nold\n");
        // The line without a newline was the last one and no longer is.
        let without_newline = format!("{B}ours\n{}", E.trim_end());
        let content = without_newline.as_bytes();
        let removal =
            BlockEdit { removed: find_block_segments(content, is_managed_line), inserted: Vec::new() };
        let back = removal.revert_edited(b"theirs\n", Vec::new(), is_equal).unwrap();
        assert_eq!(back, format!("{without_newline}\ntheirs\n").as_bytes());
        assert_eq!(removal.revert_edited(b"", Vec::new(), is_equal).unwrap(), content);
        let foreign = format!("{B}ours, changed\n{E}old\n");
        let found = find_block_segments(foreign.as_bytes(), is_managed_line);
        assert_eq!(edit.revert_edited(foreign.as_bytes(), found, is_equal), None);
        assert_eq!(edit.revert_edited(b"new\nold\n", Vec::new(), is_equal).unwrap(), b"new\nold\n");
    }

    fn any_file_content() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(B.as_bytes().to_vec()),
            Just(E.as_bytes().to_vec()),
            Just(b"ours\n".to_vec()),
            Just(BOM.to_vec()),
            proptest::collection::vec(any::<u8>(), 0..20),
            "[a-z#]{0,8}\r?\n".prop_map(String::into_bytes),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn block_edit_apply_then_revert_is_identity(content in any_file_content(), insert in any::<bool>()) {
            let inserted = if insert { format!("{B}ours\n{E}").into_bytes() } else { Vec::new() };
            let edit = BlockEdit { removed: find_block_segments(&content, is_managed_line), inserted };
            let edited = edit.apply(&content);
            prop_assert_eq!(edit.revert(&edited), Some(content));
        }

        #[test]
        fn removal_leaves_no_marker(content in any_file_content()) {
            let edit = BlockEdit { removed: find_block_segments(&content, is_managed_line), inserted: Vec::new() };
            let left = edit.apply(&content);
            // A line behind a byte order mark in mid-file was not the agent's. At the top it may look like it.
            let mut inner = split_lines(&left).filter(|line| line.offset != BOM.len());
            prop_assert!(inner.all(|line| parse_marker(line.bytes).is_none()));
        }
    }
}
