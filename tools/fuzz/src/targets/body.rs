//! Bodies: content and end do not depend on the cuts, and nothing behind the end is touched.

use beltway::http::h1::Reject;
use beltway::http::h1::body::{BodyDecoder, TRAILER_FIELDS_MAX, is_forbidden_trailer};
use beltway::http::h1::encode;
use beltway::http::types::Framing;

use crate::Target;
use crate::targets::cuts_of;

/// The target. The first byte chooses the framing: `c` is chunked, anything else is its length.
pub const TARGET: Target = Target {
    name: "body",
    run,
    corpus: &[
        b"c3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
        b"c1;ext=\"a\"\r\nx\r\n10\r\n0123456789abcdef\r\n0\r\nX-Sum: 1\r\nA: b\r\n\r\n",
        b"c0\r\nContent-Length: 5\r\n\r\n",
        b"cffffffffffffffff\r\n",
        b"cA\r\n0123456789\r\n000;x\r\n\r\n",
        b"\x05helloGET / HTTP/1.1\r\n",
        b"\x00GET / HTTP/1.1\r\n",
    ],
    tokens: &[
        b"\r\n",
        b"\n",
        b"\r",
        b"0\r\n",
        b"0\r\n\r\n",
        b"1\r\na\r\n",
        b";",
        b";a=b",
        b" ",
        b"\t",
        b"ffffffffffffffff",
        b"00000000",
        b"0x1",
        b"-1",
        b"+1",
        b"A: b\r\n",
        b"Host: a\r\n",
        b" folded\r\n",
        b"\0",
    ],
};

/// What came of a body: content, bytes consumed, whether it ended.
type Outcome = Result<(Vec<u8>, usize, bool), Reject>;

fn run(input: &[u8]) {
    let Some((&choice, input)) = input.split_first() else {
        return;
    };
    let framing = match choice {
        b'c' => Framing::Chunked,
        0 => Framing::None,
        length => Framing::Length(u64::from(length)),
    };
    let whole = decode(framing, input, &[]);
    assert_eq!(
        decode(framing, input, &cuts_of(input)),
        whole,
        "cut at random"
    );
    let each: Vec<usize> = (0..input.len()).collect();
    assert_eq!(decode(framing, input, &each), whole, "byte by byte");
    let Ok((content, consumed, ended)) = whole else {
        assert_eq!(
            framing,
            Framing::Chunked,
            "only chunked coding can be broken"
        );
        return;
    };
    if ended {
        // What stands behind the body is the next request and changes nothing.
        let alone = decode(framing, &input[..consumed], &[]);
        assert_eq!(alone, Ok((content.clone(), consumed, true)));
    } else {
        assert_eq!(consumed, input.len());
    }
    match framing {
        Framing::None => assert_eq!((consumed, ended), (0, true)),
        Framing::Length(length) => {
            assert_eq!(content, input[..consumed]);
            assert_eq!(ended, consumed as u64 == length);
        }
        Framing::Chunked if ended => check_again(&content),
        Framing::Chunked => {}
    }
}

fn decode(framing: Framing, input: &[u8], cuts: &[usize]) -> Outcome {
    let mut decoder = BodyDecoder::new(framing);
    let (mut content, mut at) = (Vec::new(), 0);
    for &cut in cuts.iter().chain([&input.len()]) {
        while at < cut && !decoder.is_ended() {
            let piece = &input[at..cut];
            let decoded = decoder.decode(piece).inspect_err(|&reject| {
                assert!(matches!(reject.status.0, 400 | 431));
                assert_eq!(decoder.decode(b"0\r\n\r\n"), Err(reject), "an error stays");
            })?;
            assert!(decoded.consumed > 0, "each call gets on");
            assert!(decoded.data.end <= decoded.consumed && decoded.consumed <= piece.len());
            content.extend_from_slice(&piece[decoded.data]);
            at += decoded.consumed;
        }
    }
    if decoder.is_ended() {
        let trailers = decoder.trailers();
        assert!(trailers.len() <= TRAILER_FIELDS_MAX);
        assert!(trailers.iter().all(|(name, _)| !is_forbidden_trailer(name)));
    }
    Ok((content, at, decoder.is_ended()))
}

/// What was decoded is the same again after our own encoder.
fn check_again(content: &[u8]) {
    let mut encoded = Vec::new();
    for chunk in content.chunks(7) {
        encode::write_chunk_header(&mut encoded, chunk.len() as u64);
        encoded.extend_from_slice(chunk);
        encoded.extend_from_slice(encode::CHUNK_END);
    }
    encoded.extend_from_slice(encode::LAST_CHUNK);
    let again = decode(Framing::Chunked, &encoded, &[]);
    assert_eq!(again, Ok((content.to_vec(), encoded.len(), true)));
}
