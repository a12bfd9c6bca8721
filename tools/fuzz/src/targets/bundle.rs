//! Packed configurations: hostile bytes are refused with words, and what is accepted packs and
//! unpacks to the same.

use crate::Target;
use beltway::config::bundle::{pack, unpack};
use beltway::config::diff::diff;

/// The target.
pub const TARGET: Target = Target {
    name: "bundle",
    run,
    corpus: CORPUS,
    tokens: &[
        b"beltway configuration 1\n",
        b"beltway configuration 2\n",
        b"[0,4294967295,4294967295]",
        b"[1,0,0]",
        b"{\"String\":\"${A}\"}",
        b"{\"String\":\"file:a\"}",
        b"{\"Integer\":-1}",
        b"{\"Boolean\":false}",
        b"{\"Array\":[]}",
        b"{\"Table\":[]}",
        b"[47,255]",
        b"\\u0000",
        b"\"key\":\"root\"",
    ],
};

/// Inputs to start from.
const CORPUS: &[&[u8]] = &[
    b"beltway configuration 2\n{\"tree\":[{\"key\":\"site\",\"key_at\":[0,1,5],\"item\":{\"value\":\
      {\"Table\":[{\"key\":\":1\",\"key_at\":[0,6,10],\"item\":{\"value\":{\"Table\":[{\"key\":\"respond\",\
      \"key_at\":[0,12,19],\"item\":{\"value\":{\"Integer\":200},\"at\":[0,22,25]}},{\"key\":\"body\",\
      \"key_at\":[0,26,30],\"item\":{\"value\":{\"String\":\"file:a\"},\"at\":[0,33,41]}}]},\
      \"at\":[0,0,11]}}]},\"at\":[0,0,11]}}],\"sources\":[{\"kind\":\"File\",\"name\":\"a.toml\",\"text\":\
      \"[site.\\\":1\\\"]\\nrespond = 200\\nbody = \\\"file:a\\\"\\n\",\"base\":\"/srv\"}],\
      \"variables\":[[\"A\",\"b\"]],\"files\":[[\"/srv/a\",\"secret\"]],\"pem\":[]}",
    b"beltway configuration 2\n{\"tree\":[{\"key\":\"site\",\"key_at\":[0,6,25],\"item\":{\"value\":\
      {\"Table\":[{\"key\":\"*\",\"key_at\":[0,6,25],\"item\":{\"value\":{\"Table\":[{\"key\":\"root\",\
      \"key_at\":[0,6,25],\"item\":{\"value\":{\"String\":\"${A:-x}\"},\"at\":[0,18,25]}}]},\
      \"at\":[0,6,25]}}]},\"at\":[0,6,25]}}],\"sources\":[{\"kind\":\"CommandLine\",\"name\":\
      \"the command line\",\"text\":\"--set site.*.root=${A:-x}\\u00e9\",\"base\":[47,255]}],\
      \"variables\":[],\"files\":[],\"pem\":[]}",
    b"beltway configuration 2\n{\"tree\":[],\"sources\":[],\"variables\":[],\"files\":[],\"pem\":[]}",
];

/// A refusal has words. What is accepted is the same after it was packed and unpacked again, and
/// differs in nothing from itself.
fn run(input: &[u8]) {
    let first = match unpack(input) {
        Ok(loaded) => loaded,
        Err(error) => return assert!(!error.is_empty()),
    };
    let packed = pack(&first).expect("what was accepted is small enough");
    let second = unpack(&packed).expect("what was packed is accepted");
    assert!(diff(&first, &second).is_empty());
    assert_eq!(pack(&second).as_ref(), Ok(&packed));
    assert_eq!(first.model.server, second.model.server);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_understood() {
        let accepted = CORPUS.iter().filter(|input| unpack(input).is_ok()).count();
        assert_eq!(accepted, 2, "the last has no site");
    }
}
