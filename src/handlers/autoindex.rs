//! A directory listing as a page and as JSON.
//!
//! Pure: the caller reads the directory and decides what may be shown; this turns it into bytes.
//! The page works without scripts, loads nothing, and shows names of any bytes without letting
//! them become markup, another link or another direction of text.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write;

use crate::http::semantics::{date, mime};

/// Content-Security-Policy of the page: its own style, by its hash, and nothing else.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; \
     style-src 'sha256-bjv1c6wgY+CBEwMhN/rlei1OFvVs0e3tFVKOiWZacsw='; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// Content-Type of the page.
pub const HTML_MEDIA_TYPE: &str = "text/html; charset=utf-8";
/// Content-Type of the JSON form.
pub const JSON_MEDIA_TYPE: &str = "application/json";

const STYLE: &str = include_str!("autoindex.css");
const ICONS: &str = include_str!("autoindex.svg");

/// What a directory holds.
#[derive(Clone, Debug)]
pub struct Listing<'a> {
    /// Canonical decoded path of the directory; begins and ends with a slash.
    pub path: &'a str,
    /// What is in it, in any order, without `.` and `..` and what is hidden.
    pub entries: Vec<Entry>,
    /// Whether there is more than `entries`, because a bound was reached.
    pub truncated: bool,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as the file system has it: any bytes but NUL and `/`.
    pub name: Box<[u8]>,
    /// Directory or file.
    pub kind: Kind,
    /// Size in bytes; not shown for a directory.
    pub size: u64,
    /// Time of modification in seconds since 1970-01-01 UTC.
    pub modified: i64,
}

/// What an entry is, symbolic links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory: its link ends with a slash.
    Directory,
    /// Everything else that is served.
    File,
}

/// The column by which entries are sorted, directories always first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Column {
    /// By name, numbers in it by their value (`file2` before `file10`), ASCII case ignored.
    #[default]
    Name,
    /// By size; directories by name.
    Size,
    /// By time of modification.
    Time,
}

impl Column {
    const ALL: [Self; 3] = [Self::Name, Self::Size, Self::Time];

    const fn key(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Size => "size",
            Self::Time => "time",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Name => "Name",
            Self::Size => "Size",
            Self::Time => "Modified<span class=\"clock\"> (UTC)</span>",
        }
    }
}

/// What the query of a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// `sort=name|size|time`.
    pub column: Column,
    /// `order=asc|desc`.
    pub descending: bool,
    /// `format=json`; the caller may set it for a client that accepts JSON only.
    pub json: bool,
}

impl View {
    /// Reads the query; what is unknown or malformed is left at its default.
    pub fn from_query(query: Option<&str>) -> Self {
        let mut view = Self::default();
        for pair in query.unwrap_or("").split('&') {
            match pair.split_once('=') {
                Some(("sort", key)) => {
                    let known = Column::ALL.into_iter().find(|column| column.key() == key);
                    view.column = known.unwrap_or(view.column);
                }
                Some(("order", order)) => view.descending = order == "desc",
                Some(("format", format)) => view.json = format == "json",
                _ => {}
            }
        }
        view
    }

    /// The query that keeps this order in another directory; empty for the default.
    fn kept(self) -> String {
        if (self.column, self.descending) == (Column::Name, false) {
            return String::new();
        }
        sort_query(self.column, self.descending)
    }
}

fn sort_query(column: Column, descending: bool) -> String {
    let order = if descending { "desc" } else { "asc" };
    format!("?sort={}&amp;order={order}", column.key())
}

/// The listing in the form that was asked for, and its media type.
pub fn render(listing: Listing<'_>, view: View) -> (Vec<u8>, &'static str) {
    if view.json {
        (json(listing, view), JSON_MEDIA_TYPE)
    } else {
        (html(listing, view), HTML_MEDIA_TYPE)
    }
}

/// The listing as JSON, in the shape of nginx's `autoindex_format json`: an array of objects with
/// `name`, `type` (`"directory"` or `"file"`), `mtime` (an HTTP date) and, for files, `size` in
/// bytes. A name that is not UTF-8 is shown with U+FFFD in place of what is not, and has `href`
/// besides: the name percent-encoded, from which its bytes can be had.
pub fn json(mut listing: Listing<'_>, view: View) -> Vec<u8> {
    sort(&mut listing.entries, view);
    let mut out = String::with_capacity(16 + listing.entries.len() * 100);
    out.push('[');
    for (index, entry) in listing.entries.iter().enumerate() {
        out.push_str(if index == 0 { "\n" } else { ",\n" });
        let name = String::from_utf8_lossy(&entry.name);
        out.push_str("{\"name\":");
        push_json_string(&mut out, &name);
        if let Cow::Owned(_) = name {
            out.push_str(",\"href\":\"");
            push_href(&mut out, &entry.name);
            out.push('"');
        }
        let kind = match entry.kind {
            Kind::Directory => "directory",
            Kind::File => "file",
        };
        let _ = write!(out, ",\"type\":\"{kind}\",\"mtime\":\"");
        push_ascii(&mut out, &date::imf_fixdate(entry.modified));
        out.push('"');
        if entry.kind == Kind::File {
            let _ = write!(out, ",\"size\":{}", entry.size);
        }
        out.push('}');
    }
    out.push_str("\n]\n");
    out.into_bytes()
}

/// The listing as a page; to be sent with [`CONTENT_SECURITY_POLICY`].
pub fn html(mut listing: Listing<'_>, view: View) -> Vec<u8> {
    sort(&mut listing.entries, view);
    let mut out =
        String::with_capacity(STYLE.len() + ICONS.len() + 2048 + listing.entries.len() * 400);
    out.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    out.push_str("<meta name=\"color-scheme\" content=\"light dark\">\n<title>Index of ");
    push_text(&mut out, listing.path);
    out.push_str("</title>\n<style>");
    out.push_str(STYLE);
    out.push_str("</style>\n</head>\n<body>\n");
    out.push_str(ICONS);
    out.push_str("<main>\n<h1 class=\"hidden\">Index of ");
    push_text(&mut out, listing.path);
    out.push_str("</h1>\n");
    push_breadcrumbs(&mut out, listing.path, view);
    push_table(&mut out, &listing, view);
    push_summary(&mut out, &listing.entries);
    out.push_str("</main>\n</body>\n</html>\n");
    out.into_bytes()
}

/// The way from the root to here. Links are relative, so that they hold behind a proxy that serves
/// the site below a prefix.
fn push_breadcrumbs(out: &mut String, path: &str, view: View) {
    let segments: Vec<_> = path.split('/').filter(|s| !s.is_empty()).collect();
    out.push_str("<nav aria-label=\"Path\"><ol>\n<li><a href=\"");
    push_up(out, segments.len(), view);
    out.push_str(if segments.is_empty() {
        "\" aria-current=\"page\" aria-label=\"Root\">"
    } else {
        "\" aria-label=\"Root\">"
    });
    push_icon(out, "home");
    out.push_str("</a></li>\n");
    for (index, segment) in segments.iter().enumerate() {
        let above = segments.len() - 1 - index;
        out.push_str("<li><a href=\"");
        push_up(out, above, view);
        out.push_str(if above == 0 {
            "\" aria-current=\"page\"><bdi>"
        } else {
            "\"><bdi>"
        });
        push_text(out, segment);
        out.push_str("</bdi></a></li>\n");
    }
    out.push_str("</ol></nav>\n");
}

/// A link to this directory (0) or to one above it.
fn push_up(out: &mut String, levels: usize, view: View) {
    if levels == 0 {
        out.push_str("./");
    }
    for _ in 0..levels {
        out.push_str("../");
    }
    out.push_str(&view.kept());
}

fn push_table(out: &mut String, listing: &Listing<'_>, view: View) {
    out.push_str("<div class=\"card\">\n<table>\n<thead><tr>");
    for column in Column::ALL {
        push_heading(out, column, view);
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    if listing.path != "/" {
        out.push_str("<tr class=\"up\"><th scope=\"row\"><a href=\"");
        push_up(out, 1, view);
        out.push_str("\">");
        push_icon(out, "up");
        out.push_str("<bdi>Parent directory</bdi></a></th>");
        out.push_str("<td class=\"size\"></td><td class=\"time\"></td></tr>\n");
    }
    for entry in &listing.entries {
        push_row(out, entry, view);
    }
    out.push_str("</tbody>\n</table>\n");
    if listing.entries.is_empty() {
        out.push_str("<p class=\"note empty\">This directory is empty.</p>\n");
    }
    if listing.truncated {
        let shown = grouped(listing.entries.len() as u64);
        let _ = writeln!(
            out,
            "<p class=\"note\" role=\"note\">Not everything is shown: the list stops at {shown}.</p>"
        );
    }
    out.push_str("</div>\n");
}

/// The head of a column: a link that sorts by it, or the other way round if it is sorted already.
fn push_heading(out: &mut String, column: Column, view: View) {
    let sorted = column == view.column;
    let (key, title) = (column.key(), column.title());
    let state = match (sorted, view.descending) {
        (false, _) => "",
        (true, false) => " aria-sort=\"ascending\"",
        (true, true) => " aria-sort=\"descending\"",
    };
    // The largest and the newest are what is looked for first.
    let descending = if sorted {
        !view.descending
    } else {
        column != Column::Name
    };
    let query = sort_query(column, descending);
    let _ = write!(
        out,
        "<th scope=\"col\" class=\"{key}\"{state}><a href=\"{query}\">{title}"
    );
    push_icon(out, "arrow");
    out.push_str("</a></th>");
}

fn push_row(out: &mut String, entry: &Entry, view: View) {
    let name = String::from_utf8_lossy(&entry.name);
    let directory = entry.kind == Kind::Directory;
    out.push_str(if directory {
        "<tr class=\"folder\">"
    } else {
        "<tr>"
    });
    out.push_str("<th scope=\"row\"><a href=\"");
    push_href(out, &entry.name);
    if directory {
        out.push('/');
        out.push_str(&view.kept());
    }
    out.push_str("\">");
    push_icon(out, if directory { "folder" } else { icon(&name) });
    out.push_str("<bdi>");
    push_text(out, &name);
    out.push_str(if directory { "/</bdi>" } else { "</bdi>" });
    out.push_str("</a></th><td class=\"size\"");
    if directory {
        out.push('>');
    } else {
        let unit = if entry.size == 1 { "byte" } else { "bytes" };
        let _ = write!(out, " title=\"{} {unit}\">", grouped(entry.size));
        out.push_str(&human(entry.size));
    }
    out.push_str("</td><td class=\"time\"><time datetime=\"");
    let written = date::rfc3339(entry.modified);
    push_ascii(out, &written);
    out.push_str("\" title=\"");
    push_ascii(out, &written);
    out.push_str("\">");
    push_ascii(out, &written[..10]);
    out.push_str("<span class=\"clock\"> ");
    push_ascii(out, &written[11..16]);
    out.push_str("</span></time></td></tr>\n");
}

fn push_summary(out: &mut String, entries: &[Entry]) {
    let (mut directories, mut files, mut bytes) = (0_u64, 0_u64, 0_u64);
    for entry in entries {
        match entry.kind {
            Kind::Directory => directories += 1,
            Kind::File => {
                files += 1;
                bytes = bytes.saturating_add(entry.size);
            }
        }
    }
    out.push_str("<footer><span>");
    let _ = write!(out, "{} director", grouped(directories));
    out.push_str(if directories == 1 { "y, " } else { "ies, " });
    let _ = write!(out, "{} file", grouped(files));
    out.push_str(if files == 1 { "" } else { "s" });
    if files > 0 {
        let _ = write!(out, ", {}", human(bytes));
    }
    out.push_str("</span><a href=\"?format=json\">JSON</a></footer>\n");
}

fn push_icon(out: &mut String, name: &str) {
    let _ = write!(
        out,
        "<svg aria-hidden=\"true\"><use href=\"#{name}\"/></svg>"
    );
}

/// The icon for a file, by its media type.
fn icon(name: &str) -> &'static str {
    let media_type = mime::from_path(name);
    let (group, rest) = media_type.split_once('/').unwrap_or((media_type, ""));
    let subtype = rest.split(';').next().unwrap_or(rest);
    match (group, subtype) {
        ("image", _) => "image",
        ("audio" | "video", _) => "media",
        ("text", "html" | "css" | "javascript") => "code",
        ("application", "json" | "xml" | "yaml" | "toml" | "wasm" | "geo+json") => "code",
        ("text", _) | ("application", "pdf" | "msword" | "rtf" | "epub+zip") => "text",
        ("application", "zip" | "gzip" | "zstd" | "x-tar" | "vnd.rar" | "x-xz") => "archive",
        ("application", "x-bzip2" | "x-7z-compressed" | "java-archive") => "archive",
        ("application", "vnd.debian.binary-package" | "x-rpm") => "archive",
        _ => "file",
    }
}

fn sort(entries: &mut [Entry], view: View) {
    entries.sort_unstable_by(|a, b| {
        let by_kind = (a.kind == Kind::File).cmp(&(b.kind == Kind::File));
        let by_name = || natural(&a.name, &b.name);
        let by_column = match view.column {
            Column::Size if a.kind == Kind::File => a.size.cmp(&b.size),
            Column::Time => a.modified.cmp(&b.modified),
            // The size of a directory is not shown, so its name decides, in the usual order.
            Column::Size => return by_kind.then_with(by_name),
            Column::Name => by_name(),
        };
        let by_column = if view.descending {
            by_column.reverse()
        } else {
            by_column
        };
        by_kind.then(by_column).then_with(by_name)
    });
}

/// Compares names as people do: runs of digits by their value, letters without regard to ASCII
/// case. Names that are equal so far are told apart by their bytes, so the order is total.
fn natural(a: &[u8], b: &[u8]) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (Some(x), Some(y)) = (left.first(), right.first()) else {
            return left.len().cmp(&right.len()).then_with(|| a.cmp(b));
        };
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (x, y) = (take_number(&mut left), take_number(&mut right));
            // Without leading zeros the longer number is the larger one.
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            left = &left[1..];
            right = &right[1..];
            x.to_ascii_lowercase().cmp(&y.to_ascii_lowercase())
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Takes the digits off the start and returns them without leading zeros.
fn take_number<'n>(name: &mut &'n [u8]) -> &'n [u8] {
    let end = name
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(name.len());
    let (digits, rest) = name.split_at(end);
    *name = rest;
    let zeros = digits.iter().take_while(|byte| **byte == b'0').count();
    &digits[zeros..]
}

/// A size with two or more significant digits: `999 B`, `1.5 KiB`, `15 KiB`, `2.0 TiB`.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // What would be rounded to 1024 is one of the next unit.
    let (bytes, mut unit, mut scale) = (u128::from(bytes), 0, 1024);
    while (bytes + scale / 2) / scale >= 1024 && unit + 1 < UNITS.len() {
        unit += 1;
        scale *= 1024;
    }
    let tenths = (bytes * 10 + scale / 2) / scale;
    if tenths < 100 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", (bytes + scale / 2) / scale, UNITS[unit])
    }
}

/// A number with a narrow space that does not break between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Text in an element or in a quoted attribute. Control characters are shown as U+FFFD.
fn push_text(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

/// A name as one segment of a relative link: all but unreserved characters (RFC 3986 §2.3) are
/// escaped, so that neither a colon makes a scheme nor any byte gets lost.
fn push_href(out: &mut String, name: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in name {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(*byte));
            }
            byte => {
                out.push('%');
                out.push(char::from(DIGITS[usize::from(byte >> 4)]));
                out.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
}

/// A JSON string with its quotes (RFC 8259 §7). `<` is escaped too, for clients that put the text
/// into a page.
fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' || matches!(c, '<' | '\u{7f}' | '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn push_ascii(out: &mut String, bytes: &[u8]) {
    out.extend(bytes.iter().map(|byte| char::from(*byte)));
}

#[cfg(test)]
mod tests;
