//! Keys and certificates as text (RFC 7468), without leaving copies of a key in memory.

use zeroize::{Zeroize as _, Zeroizing};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Characters of a line (RFC 7468 §2).
const LINE: usize = 64;

/// The text of one part.
pub(super) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let (begin, end) = borders(label);
    let characters = der.len().div_ceil(3) * 4;
    let lines = characters.div_ceil(LINE);
    // It doesn't grow: what is left behind by that would not be wiped.
    let room = begin.len() + end.len() + characters + lines + 2;
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.push_str(&begin);
    text.push('\n');
    let bytes_of_line = LINE / 4 * 3;
    for line in der.chunks(bytes_of_line) {
        for three in line.chunks(3) {
            let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for at in 0..4_usize {
                let digit = (bits >> (18 - 6 * at)) & 63;
                let padded = at > three.len();
                text.push(if padded {
                    '='
                } else {
                    ALPHABET[digit as usize].into()
                });
            }
        }
        text.push('\n');
    }
    text.push_str(&end);
    text.push('\n');
    debug_assert!(text.len() <= room, "the text was moved");
    text
}

/// The content of the only part of a text that we wrote: this label, nothing else but white space. `None`
/// where it isn't that, such as when it is cut.
pub(super) fn decode(label: &str, text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (begin, end) = borders(label);
    let text = text.trim_ascii();
    let body = text.strip_prefix(begin.as_bytes())?;
    let body = body.strip_suffix(end.as_bytes())?;
    let mut der = Zeroizing::new(Vec::with_capacity(body.len() / 4 * 3 + 3));
    let (mut bits, mut count, mut padding) = (0_u32, 0_u32, 0_usize);
    for byte in body.iter().filter(|byte| !byte.is_ascii_whitespace()) {
        if *byte == b'=' {
            padding += 1;
            continue;
        }
        let digit = ALPHABET.iter().position(|known| known == byte)?;
        if padding > 0 {
            return None;
        }
        bits = bits << 6 | u32::try_from(digit).ok()?;
        count += 1;
        if count.is_multiple_of(4) {
            der.extend_from_slice(&bits.to_be_bytes()[1..]);
            bits = 0;
        }
    }
    // What is left has the form that only the end can have, and no bits that say nothing.
    let rest = match (count % 4, padding) {
        (0, 0) => None,
        (2, 2) if bits & 0xf == 0 => Some(vec![(bits >> 4) as u8]),
        (3, 1) if bits & 3 == 0 => Some(vec![(bits >> 10) as u8, (bits >> 2) as u8]),
        _ => return None,
    };
    if let Some(mut rest) = rest {
        der.extend_from_slice(&rest);
        rest.zeroize();
    }
    bits.zeroize();
    Some(der)
}

fn borders(label: &str) -> (String, String) {
    (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn is_what_others_write() {
        // RFC 4648 §10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg==\n"),
            ("fo", "Zm8=\n"),
            ("foo", "Zm9v\n"),
            ("foob", "Zm9vYg==\n"),
        ] {
            let expected = format!("-----BEGIN X-----\n{text}-----END X-----\n");
            assert_eq!(*encode("X", bytes.as_bytes()), expected);
            assert_eq!(
                **decode("X", expected.as_bytes()).unwrap(),
                *bytes.as_bytes()
            );
        }
        let lines = encode("X", &[0; 49]);
        let lengths: Vec<usize> = lines.lines().map(str::len).collect();
        assert_eq!(lengths, [17, 64, 4, 15]);
    }

    #[test]
    fn what_is_cut_or_foreign_is_refused() {
        let whole = encode("PRIVATE KEY", b"some bytes of a key");
        for end in 0..whole.len() - 1 {
            assert!(
                decode("PRIVATE KEY", &whole.as_bytes()[..end]).is_none(),
                "{end}"
            );
        }
        for text in [
            "Zh==", "Zm9=", "Z===", "Z", "Zg=", "Zg==Zg==", "Zm-v", "====",
        ] {
            let text = format!("-----BEGIN X-----\n{text}\n-----END X-----\n");
            assert!(decode("X", text.as_bytes()).is_none(), "{text}");
        }
        assert!(decode("CERTIFICATE", whole.as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(bytes: Vec<u8>) {
            let text = encode("PRIVATE KEY", &bytes);
            prop_assert_eq!(&**decode("PRIVATE KEY", text.as_bytes()).unwrap(), &bytes);
        }
    }
}
