//! The reference file: every key with its example and its default, made from the list of keys.

use std::fmt::Write as _;

use crate::config::schema::{Key, Section};

/// How the keys of a table stand in the reference.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Those with a default are set.
    Set,
    /// All are comments: the table itself would switch something on.
    Comments,
}

/// Every key with its example and its default: the content of `conf/full-reference.toml`.
pub fn reference() -> String {
    let mut out = String::from(
        "# Every key of a configuration file. What has a default stands with it; what has none stands\n\
         # as a comment with an example. `beltway check -c FILE` says what is wrong with a file.\n\
         # Durations are such as \"10s\" or \"1m30s\", sizes such as \"8KiB\" or \"2GiB\". In strings, ${NAME}\n\
         # is a variable of the environment, ${NAME:-default} one with a default.\n",
    );
    let mut section = |title: &str, section: Section, skip: &dyn Fn(&Key) -> bool| {
        if !title.is_empty() {
            let _ = write!(out, "\n{title}\n");
        }
        for key in section.keys().filter(|key| !skip(key)) {
            write_key(&mut out, key, Style::Set);
        }
    };
    let tables = |key: &Key| {
        let tables = ["server", "upstream", "site", "limits", "timeouts"];
        tables.contains(&key.name)
    };
    section("", Section::Top, &tables);
    section("[server]", Section::Server, &tables);
    section("[server.limits]", Section::Limits, &|_| false);
    section("[server.timeouts]", Section::Timeouts, &|_| false);
    section(
        "# The name of a site is a host (example.com, *.example.com), a port (:8080, any host), both\n\
         # (example.com:8080), an address (127.0.0.1:8080, any host) or * (any host on port 80).\n\
         [site.\":8080\"]",
        Section::Site,
        &|key| {
            ["headers", "routes", "tls", "client_certificates"].contains(&key.name)
                || is_of_proxies(key)
        },
    );
    write_tables_of_site(&mut out);
    write_upstream(&mut out);
    write_proxy(&mut out);
    out
}

fn is_of_proxies(key: &Key) -> bool {
    Section::of_proxies().any(|other| other.name == key.name)
}

/// The tables of the site that serves files.
fn write_tables_of_site(out: &mut String) {
    let mut table = |name: &str, lines: &str| {
        write_doc(out, Section::Site.key(name));
        let _ = writeln!(out, "[site.\":8080\".{name}]\n{lines}");
    };
    table("headers", "# X-Frame-Options = \"DENY\"");
    table(
        "routes",
        "# \"=/healthz\" = { respond = 200, body = \"ok\" }\n\
         # \"/old/*\" = { redirect = \"/new/{path}\", status = 308 }\n\
         # \"/assets/*\" = { cache_control = \"public, max-age=31536000, immutable\" }\n\
         # \"*.map\" = { respond = 404 }",
    );
    for key in Section::Route.keys().take(1).chain(Section::When.keys()) {
        write_doc(out, Some(key));
        let _ = match key.name {
            "when" => writeln!(
                out,
                "# \"/a\" = [{{ when = {}, respond = 200 }}, {{ respond = 405 }}]",
                key.example
            ),
            name => writeln!(
                out,
                "# \"/{name}\" = {{ when = {{ {name} = {} }}, respond = 200 }}",
                key.example
            ),
        };
    }
}

/// The upstream that the sites of the reference use.
fn write_upstream(out: &mut String) {
    let tables = [
        ("tls", Section::UpstreamTls, Style::Comments),
        ("keepalive", Section::Keepalive, Style::Set),
        ("queue", Section::Queue, Style::Set),
        ("health", Section::Health, Style::Comments),
        ("passive_health", Section::Passive, Style::Set),
        ("breaker", Section::Breaker, Style::Comments),
        ("retry_budget", Section::RetryBudget, Style::Set),
        ("resolve", Section::Resolve, Style::Set),
    ];
    out.push_str("\n# A group of backends, for `proxy`.\n[upstream.app]\n");
    for key in Section::Upstream.keys() {
        if !tables.iter().any(|(name, ..)| *name == key.name) {
            write_key(out, key, Style::Set);
        }
    }
    for (what, section) in [
        (
            "`balance` may be a table with these keys:",
            Section::Balance,
        ),
        (
            "Each server may be a table with these keys:",
            Section::Backend,
        ),
    ] {
        let _ = write!(out, "\n# {what}\n");
        for key in section.keys() {
            write_key(out, key, Style::Comments);
        }
    }
    for (name, section, style) in tables {
        let title = format!("[upstream.app.{name}]");
        write_table(out, Section::Upstream.key(name), &title, section, style);
    }
}

/// The site that backends answer for.
fn write_proxy(out: &mut String) {
    const SITE: &str = "site.\"app.example.com\"";
    let tables = [
        ("tls", Section::Tls, Style::Set),
        ("client_certificates", Section::Clients, Style::Comments),
        ("timeouts", Section::ProxyTimeouts, Style::Set),
        ("retries", Section::Retries, Style::Set),
        ("buffer", Section::Buffer, Style::Comments),
        ("proxy_protocol", Section::ProxyProtocol, Style::Comments),
    ];
    let _ = write!(
        out,
        "\n# A site that backends answer for. Its routes may have these keys, too.\n[{SITE}]\n"
    );
    for key in Section::of_proxies() {
        let apart = tables.iter().any(|(name, ..)| *name == key.name);
        if !apart && key.name != "request_headers" {
            write_key(out, key, Style::Set);
        }
    }
    write_doc(out, Section::Site.key("request_headers"));
    let _ = writeln!(
        out,
        "[{SITE}.request_headers]\n# X-Request-Source = \"edge\""
    );
    for (name, section, style) in tables {
        let title = format!("[{SITE}.{name}]");
        write_table(out, Section::Site.key(name), &title, section, style);
    }
}

/// A table with what it is for.
fn write_table(out: &mut String, of: Option<&Key>, title: &str, section: Section, style: Style) {
    write_doc(out, of);
    let comment = if style == Style::Set { "" } else { "# " };
    let _ = writeln!(out, "{comment}{title}");
    for key in section.keys() {
        write_key(out, key, style);
    }
}

fn write_doc(out: &mut String, key: Option<&Key>) {
    out.push('\n');
    for line in key.map_or("", |key| key.doc).lines() {
        let _ = writeln!(out, "# {line}");
    }
}

fn write_key(out: &mut String, key: &Key, style: Style) {
    write_doc(out, Some(key));
    // Those that need another key would be errors beside the `root` of the reference.
    let needs_another = ["body", "content_type", "status"].contains(&key.name);
    let (value, set) = match (key.default, key.name) {
        // The sites of the reference use it.
        (_, "proxy") => ("\"app\"", true),
        ("", name) => {
            let set = ["root", "servers", "cert", "key"];
            (key.example, set.contains(&name))
        }
        (default, _) => (default, !needs_another),
    };
    let comment = if set && style == Style::Set { "" } else { "# " };
    let _ = writeln!(out, "{comment}{} = {value}", key.name);
}
