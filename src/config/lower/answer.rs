//! How a site or a route answers: its action, the options of files, and what it inherits.

use std::path::PathBuf;
use std::sync::Arc;

use super::proxy::Options;
use super::read::Reader;
use crate::config::diagnostics::Diagnostic;
use crate::config::model::{
    Action, Cors, DirectMode, ErrorPage, ErrorPages, Files, HeaderOp, Symlinks,
};
use crate::config::raw::{Entry, Item, Table, Value};
use crate::config::schema::Section;
use crate::http::router::{Pattern, Template};
use crate::http::semantics::negotiate::Coding;
use crate::http::types::{FieldValue, Status};

/// Keys that name what answers. A table has at most one of them.
const ACTIONS: [&str; 4] = ["root", "redirect", "respond", "proxy"];

/// Keys that say how files are served, and need a root.
const FILE_KEYS: [&str; 9] = [
    "index",
    "list",
    "spa",
    "precompressed",
    "etag",
    "range",
    "hidden_files",
    "symlinks",
    "direct",
];

/// The page of a single-page application where no other is named.
const SPA_PAGE: &str = "index.html";

/// Everything that a route inherits from its site.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) action: Action,
    /// Options and root of files; the root is empty where there is none.
    files: Files,
    /// How backends are asked.
    proxy: Options,
    pub(super) headers: Arc<[HeaderOp]>,
    pub(super) cache_control: Option<FieldValue>,
    pub(super) cors: Option<Cors>,
    pub(super) error_pages: Arc<ErrorPages>,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            action: Action::None,
            files: Files {
                root: PathBuf::new(),
                index: vec!["index.html".to_owned()],
                list: false,
                spa: None,
                precompressed: Coding::ALL.to_vec(),
                etag: true,
                range: true,
                hidden_files: false,
                symlinks: Symlinks::Beneath,
                direct: DirectMode::Auto,
            },
            proxy: Options::default(),
            headers: Arc::new([]),
            cache_control: None,
            cors: None,
            error_pages: Arc::default(),
        }
    }
}

impl Reader<'_> {
    /// Reads the keys that a site and a route have in common. `pattern` is what the requests match,
    /// `None` where it is wrong and was reported.
    pub(super) fn answer(
        &mut self,
        table: &Table,
        section: Section,
        inherited: &Answer,
        pattern: Option<&Pattern>,
    ) -> Answer {
        let files = self.files(table, section, &inherited.files);
        let proxy = self.proxy_options(table, section, &inherited.proxy, pattern);
        let action = self.action(table, section, inherited, (&files, &proxy), pattern);
        if !matches!(action, Action::Files(_)) && !has_below(table, section, "root") {
            let keys = FILE_KEYS.into_iter();
            let help = "name the directory with `root`, or take this away";
            self.check_keys(table, keys, "root", help);
        }
        if !matches!(action, Action::Proxy(_)) && !has_below(table, section, "proxy") {
            let keys = Section::of_proxies().map(|key| key.name);
            let help = "name the backend with `proxy`, or take this away";
            self.check_keys(table, keys.filter(|name| *name != "proxy"), "proxy", help);
        }
        let error_pages = self.error_pages(table, section, &inherited.error_pages, &files);
        Answer {
            action,
            headers: self.headers(table, section, &inherited.headers),
            cache_control: self.cache_control(table, section, inherited.cache_control.as_ref()),
            cors: self.cors(table, section, inherited.cors.as_ref()),
            error_pages,
            files,
            proxy,
        }
    }

    /// Reports a key that does nothing without another one.
    pub(super) fn needs(&mut self, entry: &Entry, other: &str, help: &str) {
        let message = format!("`{}` does nothing without `{other}`", entry.key);
        self.diagnostics
            .push(Diagnostic::new(entry.key_at, message, "").help(help));
    }

    fn action(
        &mut self,
        table: &Table,
        section: Section,
        inherited: &Answer,
        (files, proxy): (&Files, &Options),
        pattern: Option<&Pattern>,
    ) -> Action {
        let mut actions = ACTIONS.iter().filter_map(|name| table.get(name));
        let first = actions.next();
        for other in actions {
            let first = first.expect("one came before this one");
            let (earlier, later) = if first.key_at.start <= other.key_at.start {
                (first, other)
            } else {
                (other, first)
            };
            let message = format!(
                "`{}` and `{}` can't answer the same requests",
                earlier.key, later.key
            );
            self.diagnostics.push(
                Diagnostic::new(later.key_at, message, "the second answer")
                    .with(earlier.key_at, "the first answer")
                    .help("take one away, or give it a route of its own"),
            );
        }
        let own = first.map_or("", |entry| entry.key.as_str());
        for (name, action, help) in [
            (
                "status",
                "redirect",
                "with `respond`, the status is its value",
            ),
            ("body", "respond", "write respond = 200 beside it"),
            ("content_type", "respond", "it is the type of `body`"),
        ] {
            if let Some(entry) = table.get(name)
                && own != action
            {
                self.needs(entry, action, help);
            }
        }
        match own {
            "redirect" => self.redirect(table, section, pattern),
            "respond" => self.respond(table, section),
            "root" => Action::Files(Arc::new(files.clone())),
            "proxy" => {
                let upstream = first.and_then(|entry| self.proxied(section, entry));
                upstream.map_or(Action::None, |upstream| {
                    Action::Proxy(Arc::new(proxy.with(upstream)))
                })
            }
            // Other options than the site's make another action of it.
            _ => match &inherited.action {
                Action::Files(_) if FILE_KEYS.iter().any(|name| table.get(name).is_some()) => {
                    Action::Files(Arc::new(files.clone()))
                }
                Action::Proxy(of_site)
                    if Section::of_proxies().any(|key| table.get(key.name).is_some()) =>
                {
                    Action::Proxy(Arc::new(proxy.with(Arc::clone(&of_site.upstream))))
                }
                action => action.clone(),
            },
        }
    }

    /// Reports options of an action that isn't there.
    fn check_keys(
        &mut self,
        table: &Table,
        keys: impl Iterator<Item = &'static str>,
        action: &str,
        help: &str,
    ) {
        if table.get(action).is_some() {
            return;
        }
        for entry in keys.filter_map(|name| table.get(name)) {
            self.needs(entry, action, help);
        }
    }

    fn redirect(&mut self, table: &Table, section: Section, pattern: Option<&Pattern>) -> Action {
        let words = [301, 302, 303, 307, 308];
        let status = match table.get("status") {
            None => 302,
            Some(entry) => match entry.item.value {
                Value::Integer(number) if words.iter().any(|word| i128::from(*word) == number) => {
                    // One of the words, so it fits.
                    number as u16
                }
                _ => {
                    self.wrong(section, entry, &entry.item);
                    302
                }
            },
        };
        let Some(entry) = table.get("redirect") else {
            return Action::None;
        };
        let text = self.string_of(section, entry, &entry.item);
        let (Some(text), Some(pattern)) = (text, pattern) else {
            return Action::None;
        };
        match Template::parse(&text, pattern) {
            Ok(to) => Action::Redirect {
                to,
                status: Status(status),
                of_site: section == Section::Site,
            },
            Err(error) => {
                self.pattern_error(entry.item.at, &text, "the target", &error);
                Action::None
            }
        }
    }

    fn respond(&mut self, table: &Table, section: Section) -> Action {
        let status = self
            .integer(table, section, "respond", 200..=599)
            .and_then(|status| u16::try_from(status).ok())
            .map_or(Status(200), Status);
        let entry = table.get("body");
        let body = entry.and_then(|entry| {
            let text = self.string_of(section, entry, &entry.item)?;
            self.secret_of(&entry.item, text)
        });
        if let Some(entry) = entry
            && status.forbids_body()
        {
            let message = format!("an answer with status {status} has no body");
            self.diagnostics.push(
                Diagnostic::new(entry.key_at, message, "")
                    .help("take `body` away, or respond with 200"),
            );
        }
        let body = body.unwrap_or_default();
        let content_type = match table.get("content_type") {
            Some(entry) => {
                let text = self.string_of(section, entry, &entry.item);
                text.and_then(|text| self.field_value(entry.item.at, &text))
            }
            None => Some(FieldValue::Static("text/plain; charset=utf-8")),
        };
        Action::Respond {
            status,
            content_type: content_type.filter(|_| !body.is_empty()),
            body: body.into_bytes().into(),
        }
    }

    /// The options of files, laid over those that are inherited, and the root.
    fn files(&mut self, table: &Table, section: Section, inherited: &Files) -> Files {
        let root = self.root(table, section, inherited);
        let symlinks = [
            ("off", Symlinks::Off),
            ("beneath", Symlinks::Beneath),
            ("on", Symlinks::On),
        ];
        Files {
            index: self
                .index(table, section)
                .unwrap_or_else(|| inherited.index.clone()),
            list: self
                .boolean(table, section, "list")
                .unwrap_or(inherited.list),
            spa: match table.get("spa") {
                Some(entry) => self.spa(section, entry, &root),
                None => inherited.spa.clone(),
            },
            precompressed: self
                .precompressed(table, section)
                .unwrap_or_else(|| inherited.precompressed.clone()),
            etag: self
                .boolean(table, section, "etag")
                .unwrap_or(inherited.etag),
            range: self
                .boolean(table, section, "range")
                .unwrap_or(inherited.range),
            hidden_files: self
                .boolean(table, section, "hidden_files")
                .unwrap_or(inherited.hidden_files),
            symlinks: self
                .word(table, section, "symlinks", &symlinks)
                .unwrap_or(inherited.symlinks),
            direct: self.direct(table, section).unwrap_or(inherited.direct),
            root,
        }
    }

    fn direct(&mut self, table: &Table, section: Section) -> Option<DirectMode> {
        let entry = table.get("direct")?;
        match &entry.item.value {
            Value::Boolean(true) => Some(DirectMode::On),
            Value::Boolean(false) => Some(DirectMode::Off),
            Value::String(word) if word == "auto" => Some(DirectMode::Auto),
            _ => {
                self.wrong(section, entry, &entry.item);
                None
            }
        }
    }

    fn root(&mut self, table: &Table, section: Section, inherited: &Files) -> PathBuf {
        let Some(entry) = table.get("root") else {
            return inherited.root.clone();
        };
        match self.string_of(section, entry, &entry.item) {
            Some(text) if !text.is_empty() => {
                let path = self.path(entry.item.at, &text);
                self.check_directory(&entry.item, "directory", &path);
                path
            }
            Some(_) => {
                self.wrong(section, entry, &entry.item);
                PathBuf::new()
            }
            None => PathBuf::new(),
        }
    }

    fn index(&mut self, table: &Table, section: Section) -> Option<Vec<String>> {
        let names = self.strings(table, section, "index")?;
        let mut index = Vec::with_capacity(names.len());
        for (name, item) in names {
            if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
                self.diagnostics.push(
                    Diagnostic::new(item.at, format!("`{name}` is not the name of a file"), "")
                        .help("write a name without a slash, such as \"index.html\""),
                );
            } else {
                index.push(name);
            }
        }
        Some(index)
    }

    fn spa(&mut self, section: Section, entry: &Entry, root: &std::path::Path) -> Option<String> {
        let name = match &entry.item.value {
            Value::Boolean(false) => return None,
            Value::Boolean(true) => SPA_PAGE.to_owned(),
            _ => self.string_of(section, entry, &entry.item)?,
        };
        self.file_beneath(&entry.item, root, &name)
    }

    /// The name of a file beneath a root, without slashes at its start. It must exist.
    fn file_beneath(&mut self, item: &Item, root: &std::path::Path, name: &str) -> Option<String> {
        let name = name.trim_start_matches('/');
        let odd =
            |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
        if name.split('/').any(odd) {
            self.diagnostics.push(
                Diagnostic::new(
                    item.at,
                    format!("`{name}` is not a file beneath the root"),
                    "",
                )
                .help("write its path from the root on, such as \"errors/404.html\""),
            );
            return None;
        }
        let path = root.join(name);
        if self.checks_files() && root.is_dir() && !path.is_file() {
            let message = format!("the file `{}` doesn't exist", path.display());
            self.diagnostics
                .push(Diagnostic::new(item.at, message, "").help("create it, or name another one"));
        }
        Some(name.to_owned())
    }

    fn precompressed(&mut self, table: &Table, section: Section) -> Option<Vec<Coding>> {
        let entry = table.get("precompressed")?;
        match entry.item.value {
            Value::Boolean(true) => return Some(Coding::ALL.to_vec()),
            Value::Boolean(false) => return Some(Vec::new()),
            _ => {}
        }
        let mut codings = Vec::new();
        for (name, item) in self.strings(table, section, "precompressed")? {
            match Coding::ALL
                .into_iter()
                .find(|coding| coding.token() == name)
            {
                Some(coding) if !codings.contains(&coding) => codings.push(coding),
                Some(_) => {}
                None => self.wrong(section, entry, item),
            }
        }
        Some(codings)
    }

    fn error_pages(
        &mut self,
        table: &Table,
        section: Section,
        inherited: &Arc<ErrorPages>,
        files: &Files,
    ) -> Arc<ErrorPages> {
        let Some(own) = self.table(table, section, "error_pages") else {
            return inherited.clone();
        };
        let files = Arc::new(files.clone());
        let mut pages = Vec::new();
        for entry in &own.entries {
            let Some((first, last)) = status_range(&entry.key) else {
                let message = format!("`{}` is not a status of an error", entry.key);
                self.diagnostics.push(
                    Diagnostic::new(entry.key_at, message, "")
                        .help("write a status from 400 to 599, or 4xx or 5xx"),
                );
                continue;
            };
            let Value::String(text) = &entry.item.value else {
                let message = format!("the page of {} needs a file name", entry.key);
                let label = format!("this is {}", entry.item.value.kind());
                self.diagnostics.push(
                    Diagnostic::new(entry.item.at, message, label)
                        .help(format!("write it such as {} = \"404.html\"", entry.key)),
                );
                continue;
            };
            let Some(name) = self.filled(entry.item.at, text) else {
                continue;
            };
            let Some((files, name)) = self.page(entry, &files, name) else {
                continue;
            };
            if let Some(name) = self.file_beneath(&entry.item, &files.root, &name) {
                pages.push(ErrorPage {
                    first,
                    last,
                    files,
                    path: format!("/{name}").into(),
                });
            }
        }
        for page in inherited.iter() {
            if !pages
                .iter()
                .any(|p| (p.first, p.last) == (page.first, page.last))
            {
                pages.push(page.clone());
            }
        }
        // Stable: an exact status before its class, the route's before the site's.
        pages.sort_by_key(|page| page.first != page.last);
        Arc::new(ErrorPages::new(pages))
    }
}

impl Reader<'_> {
    /// The directory of an error page and its name there: beneath the root, or where there is none
    /// (as beside `proxy`) the directory of an absolute path.
    fn page(
        &mut self,
        entry: &Entry,
        files: &Arc<Files>,
        name: String,
    ) -> Option<(Arc<Files>, String)> {
        if !files.root.as_os_str().is_empty() {
            return Some((Arc::clone(files), name));
        }
        let path = std::path::Path::new(&name);
        if let (true, Some(parent), Some(file)) = (
            path.is_absolute(),
            path.parent(),
            path.file_name().and_then(|n| n.to_str()),
        ) {
            let root = self.path(entry.item.at, &parent.to_string_lossy());
            self.check_directory(&entry.item, "directory", &root);
            let files = Files {
                root,
                ..Files::clone(files)
            };
            return Some((Arc::new(files), file.to_owned()));
        }
        let message = format!(
            "without a `root`, the page of {} needs an absolute path",
            entry.key
        );
        self.diagnostics.push(
            Diagnostic::new(entry.item.at, message, "").help(
                "write it such as \"/srv/errors/502.html\", or name the directory with `root`",
            ),
        );
        None
    }
}

/// Whether a route of a site has this key: then the site may hold options for it.
fn has_below(table: &Table, section: Section, name: &str) -> bool {
    let has = |item: &Item| matches!(&item.value, Value::Table(route) if route.get(name).is_some());
    let of_route = |entry: &Entry| match &entry.item.value {
        Value::Array(items) => items.iter().any(has),
        _ => has(&entry.item),
    };
    section == Section::Site
        && table.get("routes").is_some_and(|routes| {
            matches!(&routes.item.value, Value::Table(routes) if routes.entries.iter().any(of_route))
        })
}

/// `404`, or `4xx` and `5xx` for a whole class.
fn status_range(text: &str) -> Option<(Status, Status)> {
    match text {
        "4xx" => Some((Status(400), Status(499))),
        "5xx" => Some((Status(500), Status(599))),
        _ => {
            let status = text
                .parse()
                .ok()
                .filter(|code| (400..=599).contains(code))?;
            Some((Status(status), Status(status)))
        }
    }
}
