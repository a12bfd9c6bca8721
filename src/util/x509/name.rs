//! A name as a string (RFC 4514), for headers and logs: printable ASCII alone, whatever stands in the
//! certificate.

use std::fmt::Write as _;

use super::{Der, OBJECT_IDENTIFIER, SEQUENCE};

const UTF8_STRING: u8 = 0x0c;
const NUMERIC_STRING: u8 = 0x12;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const SET: u8 = 0x31;

/// The short names of RFC 4514 §3. What has none is told by its number, and its value in hexadecimal.
const SHORT_NAMES: [(&[u8], &str); 9] = [
    (&[0x55, 0x04, 0x03], "CN"),
    (&[0x55, 0x04, 0x07], "L"),
    (&[0x55, 0x04, 0x08], "ST"),
    (&[0x55, 0x04, 0x0a], "O"),
    (&[0x55, 0x04, 0x0b], "OU"),
    (&[0x55, 0x04, 0x06], "C"),
    (&[0x55, 0x04, 0x09], "STREET"),
    (
        &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19],
        "DC",
    ),
    (
        &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x01],
        "UID",
    ),
];

/// The content of a name, such as [`Parts::subject`](super::Parts::subject), as RFC 4514 writes it:
/// `CN=Anna,O=Example\, Inc.,C=DE`, the last part first. Everything but printable ASCII is escaped byte
/// by byte (`\C3\A4`), so two names are the same text only if they are the same. `None` where it is
/// damaged.
pub fn distinguished_name(content: &[u8]) -> Option<String> {
    let mut sets = Der(content);
    let mut parts = Vec::new();
    while !sets.0.is_empty() {
        parts.push(sets.expect(SET)?);
    }
    let mut out = String::new();
    for (index, set) in parts.iter().rev().enumerate() {
        if index > 0 {
            out.push(',');
        }
        let mut attributes = Der(set);
        let mut is_first = true;
        while is_first || !attributes.0.is_empty() {
            if !is_first {
                out.push('+');
            }
            is_first = false;
            write_attribute(&mut out, attributes.expect(SEQUENCE)?)?;
        }
    }
    Some(out)
}

/// Appends a type and its value.
fn write_attribute(out: &mut String, pair: &[u8]) -> Option<()> {
    let mut pair = Der(pair);
    let identifier = pair.expect(OBJECT_IDENTIFIER)?;
    let element = pair.0;
    let (tag, value) = pair.next()?;
    if !pair.0.is_empty() {
        return None;
    }
    let short = SHORT_NAMES.iter().find(|(known, _)| *known == identifier);
    let text = match tag {
        UTF8_STRING => std::str::from_utf8(value).ok(),
        NUMERIC_STRING | PRINTABLE_STRING | IA5_STRING if value.is_ascii() => {
            std::str::from_utf8(value).ok()
        }
        _ => None,
    };
    match (short, text) {
        (Some((_, name)), Some(text)) => {
            out.push_str(name);
            out.push('=');
            write_escaped(out, text);
        }
        (short, _) => {
            match short {
                Some((_, name)) => out.push_str(name),
                None => write_number(out, identifier)?,
            }
            // The element whole, tag and length included (RFC 4514 §2.4).
            out.push_str("=#");
            for byte in element {
                let _ = write!(out, "{byte:02x}");
            }
        }
    }
    Some(())
}

/// Appends a value (RFC 4514 §2.4).
fn write_escaped(out: &mut String, text: &str) {
    let bytes = text.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        let is_first = index == 0;
        let is_last = index + 1 == bytes.len();
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => {
                out.push('\\');
                out.push(char::from(*byte));
            }
            b' ' if is_first || is_last => out.push_str("\\20"),
            b'#' if is_first => out.push_str("\\#"),
            b' '..=b'~' => out.push(char::from(*byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

/// Appends the numbers of an object identifier (X.690 §8.19).
fn write_number(out: &mut String, identifier: &[u8]) -> Option<()> {
    let mut number: u64 = 0;
    let mut is_first = true;
    let mut is_whole = false;
    for byte in identifier {
        if number > u64::MAX >> 7 {
            return None;
        }
        number = number << 7 | u64::from(byte & 0x7f);
        is_whole = byte & 0x80 == 0;
        if !is_whole {
            continue;
        }
        if is_first {
            // The first two in one: 40 times the first, which is 0, 1 or 2, and the second.
            let root = (number / 40).min(2);
            let _ = write!(out, "{root}.{}", number - root * 40);
            is_first = false;
        } else {
            let _ = write!(out, ".{number}");
        }
        number = 0;
    }
    is_whole.then_some(())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::super::parts;
    use super::*;

    fn subject(entries: &[(DnType, DnValue)]) -> String {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let mut name = DistinguishedName::new();
        for (kind, value) in entries {
            name.push(kind.clone(), value.clone());
        }
        params.distinguished_name = name;
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        distinguished_name(parts(certificate.der()).unwrap().subject).unwrap()
    }

    fn utf8(text: &str) -> DnValue {
        DnValue::Utf8String(text.to_owned())
    }

    #[test]
    fn names_are_written_backwards_with_short_names() {
        let entries = [
            (DnType::CountryName, DnValue::from("DE")),
            (DnType::OrganizationName, utf8("Example, Inc.")),
            (DnType::CommonName, utf8("Anna")),
        ];
        assert_eq!(subject(&entries), "CN=Anna,O=Example\\, Inc.,C=DE");
        assert_eq!(subject(&[]), "");
    }

    #[test]
    fn whatever_would_split_a_header_is_escaped() {
        for (text, escaped) in [
            ("a\r\nX-Admin: 1", "CN=a\\0D\\0AX-Admin: 1"),
            ("\0\x1b\x7f", "CN=\\00\\1B\\7F"),
            ("M\u{fc}ller", "CN=M\\C3\\BCller"),
            ("\u{202e}", "CN=\\E2\\80\\AE"),
            (" a ", "CN=\\20a\\20"),
            ("#a#", "CN=\\#a#"),
            ("a+b=\"c\";<d>\\", "CN=a\\+b=\\\"c\\\"\\;\\<d\\>\\\\"),
            // A name that would look like two.
            ("a,O=b", "CN=a\\,O=b"),
        ] {
            let written = subject(&[(DnType::CommonName, utf8(text))]);
            assert_eq!(written, escaped);
            assert!(written.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }

    #[test]
    fn what_has_no_short_name_or_no_text_is_told_in_numbers() {
        let mail = DnType::from_oid(&[1, 2, 840, 113_549, 1, 9, 1]);
        let written = subject(&[(mail, utf8("a@b"))]);
        assert_eq!(written, "1.2.840.113549.1.9.1=#0c03614062");
        let wide = DnValue::BmpString(rcgen::string::BmpString::try_from("\u{fc}").unwrap());
        assert_eq!(subject(&[(DnType::CommonName, wide)]), "CN=#1e0200fc");
    }

    #[test]
    fn several_attributes_of_one_part_are_joined() {
        // SET { CN=a, O=b }.
        let set = [
            &[0x31, 20][..],
            &[0x30, 8, 0x06, 3, 0x55, 4, 3, 0x0c, 1, b'a'],
            &[0x30, 8, 0x06, 3, 0x55, 4, 10, 0x0c, 1, b'b'],
        ]
        .concat();
        assert_eq!(distinguished_name(&set).unwrap(), "CN=a+O=b");
        for end in 1..set.len() {
            assert_eq!(distinguished_name(&set[..end]), None);
        }
        assert_eq!(distinguished_name(&[0x31, 0]), None, "a part of nothing");
        let endless = [0x31, 9, 0x30, 7, 0x06, 2, 0x55, 0x84, 0x0c, 1, b'a'];
        assert_eq!(distinguished_name(&endless), None, "an unfinished number");
    }
}
