//! Makes bytes that a client chose safe to write into a line of a log.
//!
//! Nothing that a client sends may end a line, end a quoted field, move the cursor of the terminal
//! that shows the log, or make text appear in another order than it stands. So these are written
//! as escapes: control characters (C0, DEL, C1), quotes and backslashes, line and paragraph
//! separators, the characters that change the direction of text, and bytes that aren't UTF-8.

/// How an escape looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `\"`, `\\`, and `\xHH` for each byte, as in the logs of Apache and nginx. No two inputs have
    /// the same text.
    Text,
    /// As [`Text`](Self::Text), but quotes and backslashes stay: for text outside of quotes that
    /// people read.
    Prose,
    /// The escapes of a JSON string (RFC 8259 §7). Bytes that aren't UTF-8 become U+FFFD.
    Json,
}

/// Appends `bytes`, escaped.
pub fn escape(out: &mut Vec<u8>, bytes: &[u8], style: Style) {
    if bytes.iter().all(|byte| is_plain_ascii(*byte)) {
        out.extend_from_slice(bytes);
        return;
    }
    for chunk in bytes.utf8_chunks() {
        escape_str(out, chunk.valid(), style);
        match style {
            Style::Text | Style::Prose => chunk
                .invalid()
                .iter()
                .for_each(|byte| push_hex_byte(out, *byte)),
            Style::Json if chunk.invalid().is_empty() => {}
            Style::Json => out.extend_from_slice("\u{fffd}".as_bytes()),
        }
    }
}

fn escape_str(out: &mut Vec<u8>, text: &str, style: Style) {
    let mut plain_from = 0;
    for (at, character) in text.char_indices() {
        if is_safe(character) {
            continue;
        }
        let end = at + character.len_utf8();
        out.extend_from_slice(&text.as_bytes()[plain_from..at]);
        plain_from = end;
        match (character, style) {
            ('"' | '\\', Style::Prose) => out.push(character as u8),
            ('"' | '\\', _) => out.extend_from_slice(&[b'\\', character as u8]),
            (_, Style::Text | Style::Prose) => text.as_bytes()[at..end]
                .iter()
                .for_each(|byte| push_hex_byte(out, *byte)),
            // All characters that aren't safe are below U+10000: one unit of UTF-16.
            (_, Style::Json) => {
                let code = u32::from(character);
                out.extend_from_slice(b"\\u");
                push_hex(out, (code >> 8) as u8);
                push_hex(out, code as u8);
            }
        }
    }
    out.extend_from_slice(&text.as_bytes()[plain_from..]);
}

fn is_plain_ascii(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// Whether a character stands for itself in every style.
fn is_safe(character: char) -> bool {
    match character {
        '"' | '\\' => false,
        ' '..='~' => true,
        // ALM, LRM, RLM, line and paragraph separator, LRE … RLO, LRI … PDI, byte order mark.
        '\u{61c}'
        | '\u{200e}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}'
        | '\u{feff}' => false,
        other => !other.is_control(),
    }
}

fn push_hex_byte(out: &mut Vec<u8>, byte: u8) {
    out.extend_from_slice(b"\\x");
    push_hex(out, byte);
}

fn push_hex(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(&[
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(bytes: &[u8], style: Style) -> String {
        let mut out = Vec::new();
        escape(&mut out, bytes, style);
        String::from_utf8(out).expect("escaped text is UTF-8")
    }

    #[test]
    fn what_could_break_a_line_is_escaped() {
        for (bytes, text, json) in [
            (&b"/plain?a=b c~"[..], "/plain?a=b c~", "/plain?a=b c~"),
            (b"a\"b", r#"a\"b"#, r#"a\"b"#),
            (b"a\\b", r"a\\b", r"a\\b"),
            (
                b"a\r\nb\0\t",
                r"a\x0d\x0ab\x00\x09",
                r"a\u000d\u000ab\u0000\u0009",
            ),
            (b"\x1b[31m\x7f", r"\x1b[31m\x7f", r"\u001b[31m\u007f"),
            ("grün 道".as_bytes(), "grün 道", "grün 道"),
            ("\u{9b}1m".as_bytes(), r"\xc2\x9b1m", r"\u009b1m"),
            (
                "a\u{202e}b\u{2066}".as_bytes(),
                r"a\xe2\x80\xaeb\xe2\x81\xa6",
                r"a\u202eb\u2066",
            ),
            (
                "\u{200f}\u{2028}".as_bytes(),
                r"\xe2\x80\x8f\xe2\x80\xa8",
                r"\u200f\u2028",
            ),
            (b"\xffa\xc3", r"\xffa\xc3", "\u{fffd}a\u{fffd}"),
            ("😀".as_bytes(), "😀", "😀"),
        ] {
            assert_eq!(escaped(bytes, Style::Text), text);
            assert_eq!(escaped(bytes, Style::Json), json);
        }
    }

    /// Undoes [`Style::Text`].
    fn unescaped(text: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
        while let [first, tail @ ..] = rest {
            rest = tail;
            if *first != b'\\' {
                bytes.push(*first);
            } else if rest[0] == b'x' {
                let digits = std::str::from_utf8(&rest[1..3]).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = &rest[3..];
            } else {
                bytes.push(rest[0]);
                rest = &rest[1..];
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn nothing_unsafe_remains_and_text_can_be_undone(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..64),
                any::<String>().prop_map(String::into_bytes),
                "[\\x00-\\x7f\\u{200e}\\u{202e}\\u{85}\"\\\\]{0,32}".prop_map(String::into_bytes),
            ],
        ) {
            let text = escaped(&bytes, Style::Text);
            prop_assert!(text.chars().all(|c| is_safe(c) || matches!(c, '"' | '\\')), "{}", text);
            prop_assert_eq!(unescaped(&text), bytes.clone());

            let json = format!("\"{}\"", escaped(&bytes, Style::Json));
            prop_assert!(json.chars().all(|c| is_safe(c) || matches!(c, '"' | '\\')), "{}", json);
            let parsed: String = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(parsed, String::from_utf8_lossy(&bytes));
        }
    }
}
