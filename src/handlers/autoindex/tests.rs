//! What someone who opens a directory would notice, and what an uploader of files could try.

use proptest::prelude::*;

use super::*;

fn entry(name: impl AsRef<[u8]>, kind: Kind, size: u64, modified: i64) -> Entry {
    Entry {
        name: name.as_ref().into(),
        kind,
        size,
        modified,
    }
}

fn listing(path: &str, entries: Vec<Entry>) -> Listing<'_> {
    Listing {
        path,
        entries,
        truncated: false,
    }
}

fn page(path: &str, entries: Vec<Entry>, query: &str) -> String {
    let (bytes, media_type) = render(listing(path, entries), View::from_query(Some(query)));
    assert_eq!(media_type, HTML_MEDIA_TYPE);
    String::from_utf8(bytes).unwrap()
}

fn names(query: &str) -> Vec<String> {
    let entries = vec![
        entry("file10", Kind::File, 5, 300),
        entry("File2", Kind::File, 9000, 100),
        entry("a", Kind::File, 70, 200),
        entry("zoo", Kind::Directory, 1, 50),
        entry("Bar", Kind::Directory, 2, 400),
    ];
    let (bytes, _) = render(listing("/", entries), View::from_query(Some(query)));
    let array: Vec<serde_json::Value> = serde_json::from_slice(&bytes).unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    array.iter().map(name).collect()
}

#[test]
fn directories_come_first_in_every_order() {
    for (query, expected) in [
        ("format=json", ["Bar", "zoo", "a", "File2", "file10"]),
        (
            "format=json&order=desc",
            ["zoo", "Bar", "file10", "File2", "a"],
        ),
        (
            "sort=size&format=json",
            ["Bar", "zoo", "file10", "a", "File2"],
        ),
        (
            "sort=size&order=desc&format=json",
            ["Bar", "zoo", "File2", "a", "file10"],
        ),
        (
            "sort=time&order=asc&format=json",
            ["zoo", "Bar", "File2", "a", "file10"],
        ),
        (
            "sort=time&order=desc&format=json",
            ["Bar", "zoo", "file10", "a", "File2"],
        ),
        (
            "sort=&order=up&format=json&x",
            ["Bar", "zoo", "a", "File2", "file10"],
        ),
    ] {
        assert_eq!(names(query), expected, "{query}");
    }
}

#[test]
fn names_are_compared_as_people_do() {
    let mut sorted = [
        "", "0", "00", "1", "01", "2", "10", "a", "A2", "a10", "a10b", "b", "é",
    ];
    sorted.sort_by(|a, b| natural(a.as_bytes(), b.as_bytes()));
    let expected = [
        "", "0", "00", "01", "1", "2", "10", "a", "A2", "a10", "a10b", "b", "é",
    ];
    assert_eq!(sorted, expected);
}

#[test]
fn json_has_the_shape_of_nginx() {
    let entries = vec![
        entry("d", Kind::Directory, 4096, 784_111_777),
        entry("a\"b\\c\n<", Kind::File, 5, 784_111_777),
        entry(b"\xff x", Kind::File, 0, 0),
    ];
    let (bytes, media_type) = render(listing("/", entries), View::from_query(Some("format=json")));
    assert_eq!(media_type, JSON_MEDIA_TYPE);
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        "[\n\
         {\"name\":\"d\",\"type\":\"directory\",\"mtime\":\"Sun, 06 Nov 1994 08:49:37 GMT\"},\n\
         {\"name\":\"a\\\"b\\\\c\\u000a\\u003c\",\"type\":\"file\",\
         \"mtime\":\"Sun, 06 Nov 1994 08:49:37 GMT\",\"size\":5},\n\
         {\"name\":\"\u{fffd} x\",\"href\":\"%FF%20x\",\"type\":\"file\",\
         \"mtime\":\"Thu, 01 Jan 1970 00:00:00 GMT\",\"size\":0}\n]\n"
    );
    let (empty, _) = render(listing("/", vec![]), View::from_query(Some("format=json")));
    assert_eq!(empty, b"[\n]\n");
}

#[test]
fn a_row_has_name_size_and_time() {
    let page = page(
        "/",
        vec![entry(
            "big file.iso",
            Kind::File,
            1_610_612_736,
            784_111_777,
        )],
        "",
    );
    for part in [
        "<a href=\"big%20file.iso\">",
        "<bdi>big file.iso</bdi>",
        "title=\"1\u{202f}610\u{202f}612\u{202f}736 bytes\">1.5 GiB<",
        "<time datetime=\"1994-11-06T08:49:37Z\"",
        ">1994-11-06<span class=\"clock\"> 08:49</span>",
        "0 directories, 1 file, 1.5 GiB",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert!(!page.contains("Parent directory"));
}

#[test]
fn columns_are_links_that_turn_the_order_round() {
    let plain = page("/", vec![], "");
    assert!(
        plain.contains(
            "class=\"name\" aria-sort=\"ascending\"><a href=\"?sort=name&amp;order=desc\">"
        )
    );
    assert!(plain.contains("class=\"size\"><a href=\"?sort=size&amp;order=desc\">"));
    assert!(plain.contains("class=\"time\"><a href=\"?sort=time&amp;order=desc\">"));
    let sorted = page("/", vec![], "sort=size&order=desc");
    assert!(
        sorted.contains(
            "class=\"size\" aria-sort=\"descending\"><a href=\"?sort=size&amp;order=asc\">"
        )
    );
    assert_eq!(sorted.matches("aria-sort=\"").count(), 1);
}

#[test]
fn the_way_up_keeps_the_order() {
    let deep = page(
        "/a b/<c>/",
        vec![entry("d", Kind::Directory, 0, 0)],
        "sort=time",
    );
    for part in [
        "<a href=\"../../?sort=time&amp;order=asc\" aria-label=\"Root\">",
        "<a href=\"../?sort=time&amp;order=asc\"><bdi>a b</bdi>",
        "<a href=\"./?sort=time&amp;order=asc\" aria-current=\"page\"><bdi>&lt;c&gt;</bdi>",
        "<a href=\"d/?sort=time&amp;order=asc\">",
        "<title>Index of /a b/&lt;c&gt;/</title>",
        "Parent directory",
    ] {
        assert!(deep.contains(part), "{part} in {deep}");
    }
    assert!(page("/a/", vec![], "").contains("<a href=\"../\">"));
}

#[test]
fn an_empty_and_a_truncated_directory_say_so() {
    assert!(page("/", vec![], "").contains("This directory is empty."));
    let mut listing = listing("/", vec![entry("a", Kind::File, 1, 0)]);
    listing.truncated = true;
    let (bytes, _) = render(listing, View::default());
    let page = String::from_utf8(bytes).unwrap();
    assert!(page.contains("the list stops at 1."));
    assert!(!page.contains("This directory is empty."));
}

#[test]
fn sizes_are_short() {
    for (bytes, expected) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (10_188, "9.9 KiB"),
        (10_189, "10 KiB"),
        (153_600, "150 KiB"),
        (1_048_063, "1023 KiB"),
        (1_048_064, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (u64::MAX, "16 EiB"),
    ] {
        assert_eq!(human(bytes), expected, "{bytes}");
    }
}

#[test]
fn a_hostile_name_stays_a_name() {
    let name = "\"><script>alert(1)</script>&amp;'";
    let hostile = page("/", vec![entry(name, Kind::File, 0, 0)], "");
    assert!(!hostile.contains("<script"));
    assert!(hostile.contains("&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;&#39;"));
    let scheme = page(
        "/",
        vec![entry("javascript:alert(1)", Kind::File, 0, 0)],
        "",
    );
    assert!(scheme.contains("href=\"javascript%3Aalert%281%29\""));
}

#[test]
fn the_policy_has_the_hash_of_the_style() {
    let hash = base64(&sha256(STYLE.as_bytes()));
    let expected = format!("style-src 'sha256-{hash}'");
    assert!(CONTENT_SECURITY_POLICY.contains(&expected), "{expected}");
    let page = page("/", vec![], "");
    assert!(page.contains(&format!("<style>{STYLE}</style>")));
    for forbidden in [
        "style=", "<script", "src=", "url(", "@import", "http:", "https:",
    ] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn the_hash_of_the_test_is_right() {
    // FIPS 180-2, appendix B.1.
    assert_eq!(
        base64(&sha256(b"abc")),
        "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="
    );
}

proptest! {
    /// No name adds an element or ends an attribute, and its link gives its bytes back.
    #[test]
    fn any_name_is_one_row(
        name in proptest::collection::vec(
            any::<u8>().prop_filter("not in names", |byte| *byte != 0 && *byte != b'/'), 1..24),
        directory: bool, size: u64, modified: i64,
    ) {
        let kind = if directory { Kind::Directory } else { Kind::File };
        let row = {
            let mut out = String::new();
            push_row(&mut out, &entry(&name, kind, size, modified), View::default());
            out
        };
        let plain = {
            let mut out = String::new();
            push_row(&mut out, &entry("x", kind, size, modified), View::default());
            out
        };
        for mark in ['<', '>', '"', '\''] {
            prop_assert_eq!(row.matches(mark).count(), plain.matches(mark).count());
        }
        let href = row.split("href=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let href = href.strip_suffix('/').unwrap_or(href);
        let decoded: Vec<u8> = percent_encoding::percent_decode_str(href).collect();
        prop_assert_eq!(decoded, name);
    }

    #[test]
    fn json_is_json(name in proptest::collection::vec(1..=255_u8, 1..24)) {
        let out = json(listing("/", vec![entry(&name, Kind::File, 1, 1)]), View::default());
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let lossy = String::from_utf8_lossy(&name);
        prop_assert_eq!(value[0]["name"].as_str(), Some(&*lossy));
    }

    /// The order of names is total, so that sorting can rely on it.
    #[test]
    fn the_order_is_total(a in "[aB01]{0,5}", b in "[aB01]{0,5}", c in "[aB01]{0,5}") {
        let order = |x: &str, y: &str| natural(x.as_bytes(), y.as_bytes());
        prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
        prop_assert_eq!(order(&a, &b).is_eq(), a == b);
        if order(&a, &b).is_le() && order(&b, &c).is_le() {
            prop_assert!(order(&a, &c).is_le());
        }
    }
}

/// SHA-256 (FIPS 180-4), for the one hash that a constant has to agree with.
fn sha256(message: &[u8]) -> [u8; 32] {
    // The fractions of the cube roots and of the square roots of the first primes, §4.2.2, §5.3.3.
    let primes: Vec<u32> = (2..312).filter(|n| (2..*n).all(|d| n % d != 0)).collect();
    let fraction = |n: u32, power: u32| {
        // The integer root of n · 2^(32·power) is the root of n with 32 bits behind the point.
        let (mut low, mut high) = (0_u128, 1 << 36);
        while high - low > 1 {
            let middle = (low + high) / 2;
            let (raised, whole) = match power {
                2 => (middle * middle, u128::from(n) << 64),
                _ => (middle * middle * middle, u128::from(n) << 96),
            };
            if raised <= whole {
                low = middle
            } else {
                high = middle
            }
        }
        low as u32
    };
    let k: Vec<u32> = primes.iter().take(64).map(|n| fraction(*n, 3)).collect();
    let mut state: Vec<u32> = primes.iter().take(8).map(|n| fraction(*n, 2)).collect();
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut w: Vec<u32> = block
            .chunks_exact(4)
            .map(|b| u32::from_be_bytes(b.try_into().unwrap()))
            .collect();
        for t in 16..64 {
            let (x, y): (u32, u32) = (w[t - 15], w[t - 2]);
            let s0 = x.rotate_right(7) ^ x.rotate_right(18) ^ (x >> 3);
            let s1 = y.rotate_right(17) ^ y.rotate_right(19) ^ (y >> 10);
            w.push(
                w[t - 16]
                    .wrapping_add(s0)
                    .wrapping_add(w[t - 7])
                    .wrapping_add(s1),
            );
        }
        let mut v = state.clone();
        for t in 0..64 {
            let s1 = v[4].rotate_right(6) ^ v[4].rotate_right(11) ^ v[4].rotate_right(25);
            let choice = (v[4] & v[5]) ^ (!v[4] & v[6]);
            let t1 = v[7]
                .wrapping_add(s1)
                .wrapping_add(choice)
                .wrapping_add(k[t])
                .wrapping_add(w[t]);
            let s0 = v[0].rotate_right(2) ^ v[0].rotate_right(13) ^ v[0].rotate_right(22);
            let majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(t1);
            v[0] = t1.wrapping_add(s0).wrapping_add(majority);
        }
        for (sum, value) in state.iter_mut().zip(v) {
            *sum = sum.wrapping_add(value);
        }
    }
    let mut out = [0; 32];
    for (bytes, word) in out.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0, |sum, at| {
            sum << 8 | u32::from(*chunk.get(at).unwrap_or(&0))
        });
        for at in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= chunk.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    out
}
