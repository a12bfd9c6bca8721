//! Configurations: what is accepted is printed, and what is printed is accepted and the same.
//!
//! The input is a file. Nothing else is read: no included file, no secret, no directory.

use crate::Target;
use beltway::config::bundle::{pack, unpack};
use beltway::config::diff::diff;
use beltway::config::print::{Defaults, to_json, to_toml};
use beltway::config::sources::Input;
use beltway::config::{Loaded, load};

/// The target.
pub const TARGET: Target = Target {
    name: "config",
    run,
    corpus: CORPUS,
    tokens: &[
        b"[site.\":8080\"]\n",
        b"[server]\n",
        b"root = \"/\"\n",
        b"routes",
        b" = ",
        b"\"\"\"",
        b"{ redirect = \"/{path}\" }",
        b"\"10s\"",
        b"[[",
        b"~^/(a*)*$",
    ],
};

/// Inputs to start from.
const CORPUS: &[&[u8]] = &[
    b"[site.\":8080\"]\nroot = \"/srv\"\nlist = true\n",
    b"[server]\nworkers = 2\nengine = \"epoll\"\nmemory_limit = \"2GiB\"\ndrain_timeout = \"1m30s\"\n\
      limits = { request_line = \"4KiB\", header_fields = 10 }\n[site.\"a.example\"]\nrespond = 200\n",
    b"[site.\"*.example.com:81\"]\naliases = [\"example.com\"]\nlisten = [\"localhost:1\", \"unix:/a\"]\n\
      root = \"/a\"\nspa = \"a/b.html\"\nprecompressed = [\"br\"]\ncors = [\"https://a.example\"]\n\
      error_pages = { 404 = \"a.html\", 5xx = \"b.html\" }\nheaders = { X-A = \"${A:-b}\", B = \"\" }\n",
    b"[site.\":1\"]\nredirect = \"https://b.example{uri}\"\nstatus = 308\n[site.\":1\".routes]\n\
      \"~^/u/(?<id>[0-9]+)$\" = { redirect = \"/x/{id}\" }\n\"*.js\" = { respond = 404 }\n\
      \"/a/*\" = [{ when = { method = [\"GET\"], query = { a = true } }, respond = 200 }, { respond = 405 }]\n",
    b"[site.example.com]\nroot = 1\nroutes = { a = 1, \"=/b\" = { respond = 1000 }, \"/b\" = {} }\n",
    b"[server\nworkers = \n[[site]]\n= \"\xc3\xa9\n",
];

/// Everything wrong is shown, in text and as JSON, and every place is inside its source; what is
/// right prints as TOML that reads back and prints the same, and is the same in another process.
fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let first = match read(text) {
        Ok(loaded) => loaded,
        Err(()) => return,
    };
    let packed = pack(&first).expect("an input is small");
    let again = unpack(&packed).expect("what was accepted is accepted in another process");
    assert!(diff(&first, &again).is_empty());
    for defaults in [Defaults::Hidden, Defaults::Shown] {
        let printed = to_toml(&first.tree, &first.sources, defaults);
        let Ok(second) = read(&printed) else {
            panic!("what was printed is refused:\n{printed}");
        };
        let again = to_toml(&second.tree, &second.sources, defaults);
        assert_eq!(
            printed, again,
            "what was printed reads back as something else"
        );
        assert_eq!(
            to_json(&first.tree, &first.sources, defaults),
            to_json(&second.tree, &second.sources, defaults)
        );
        assert_eq!(first.model.server, second.model.server);
        assert_eq!(first.model.sites.len(), second.model.sites.len());
        assert_eq!(first.model.listeners.len(), second.model.listeners.len());
    }
}

fn read(text: &str) -> Result<Loaded, ()> {
    let input = Input {
        file: Some("fuzz.toml".into()),
        content: Some(text.to_owned()),
        directory: "/".into(),
        ..Input::default()
    };
    load(&input).map_err(|diagnostics| {
        assert!(!diagnostics.is_empty());
        let shown = diagnostics.render(false);
        assert!(diagnostics.iter().all(|d| !d.message.is_empty()));
        assert!(shown.contains("in the configuration"));
        assert!(diagnostics.to_json().is_array());
    })
}
