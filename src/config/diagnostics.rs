//! What is wrong with a configuration: where, what, and what to do. All of it in one run.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::{Deserialize, Serialize};

use super::model::Place;

/// Where something is written: a range of bytes in one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32)", into = "(u32, u32, u32)")]
pub struct At {
    /// Index into [`Sources`].
    pub source: u32,
    /// First byte.
    pub start: u32,
    /// Byte behind the last.
    pub end: u32,
}

impl At {
    /// The range of bytes.
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl From<(u32, u32, u32)> for At {
    fn from((source, start, end): (u32, u32, u32)) -> Self {
        Self { source, start, end }
    }
}

impl From<At> for (u32, u32, u32) {
    fn from(at: At) -> Self {
        (at.source, at.start, at.end)
    }
}

/// What kind of source a setting came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    /// A configuration file: places have a line and a column.
    File,
    /// A variable of the environment.
    Environment,
    /// The command line.
    CommandLine,
}

/// One place where settings are written.
#[derive(Clone, Debug)]
pub struct Source {
    /// What kind it is.
    pub kind: SourceKind,
    /// What to call it: the file as the user gave it, the flag, or the variable.
    pub name: Arc<str>,
    /// The whole text that the positions refer to.
    pub text: String,
    /// Directory to which relative paths in it refer, absolute.
    pub base: PathBuf,
}

/// Every source of one configuration.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    list: Vec<Source>,
}

impl Sources {
    /// Adds a source and gives the position of its whole text.
    pub fn add(&mut self, source: Source) -> At {
        let index = u32::try_from(self.list.len()).expect("fewer sources than files can be named");
        let end = u32::try_from(source.text.len()).unwrap_or(u32::MAX);
        self.list.push(source);
        At {
            source: index,
            start: 0,
            end,
        }
    }

    /// The source of a position.
    pub fn get(&self, at: At) -> &Source {
        &self.list[at.source as usize]
    }

    /// The directory to which relative paths at this position refer.
    pub fn base(&self, at: At) -> &Path {
        &self.get(at).base
    }

    /// The position for people: name, line and column.
    pub fn place(&self, at: At) -> Place {
        let source = self.get(at);
        let (line, column) = match source.kind {
            SourceKind::File => line_and_column(&source.text, at.start as usize),
            SourceKind::Environment | SourceKind::CommandLine => (0, 0),
        };
        Place {
            source: source.name.clone(),
            line,
            column,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.list.iter()
    }
}

fn line_and_column(text: &str, offset: usize) -> (u32, u32) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = 1 + before.bytes().filter(|&b| b == b'\n').count();
    let column = 1 + before[line_start..].chars().count();
    (
        u32::try_from(line).unwrap_or(u32::MAX),
        u32::try_from(column).unwrap_or(u32::MAX),
    )
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// What is wrong, as a sentence without a full stop.
    pub message: String,
    /// Where, with a few words for the caret.
    pub at: Option<(At, String)>,
    /// Other places that have a part in it.
    pub others: Vec<(At, String)>,
    /// What to do.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// Something wrong at a place; `label` stands beside the caret.
    pub fn new(at: At, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            at: Some((at, label.into())),
            others: Vec::new(),
            help: Vec::new(),
        }
    }

    /// Something wrong that is written nowhere, such as a file that is missing.
    pub fn global(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            at: None,
            others: Vec::new(),
            help: Vec::new(),
        }
    }

    /// Adds another place.
    #[must_use]
    pub fn with(mut self, at: At, label: impl Into<String>) -> Self {
        self.others.push((at, label.into()));
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }
}

/// Everything that is wrong, with the sources it refers to.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    /// The sources.
    pub sources: Sources,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Adds one. A second one at the same position is a consequence of the first and is left out.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let position = |d: &Diagnostic| d.at.as_ref().map(|(at, _)| *at);
        let known = self
            .list
            .iter()
            .any(|d| position(d).is_some() && position(d) == position(&diagnostic));
        if !known {
            self.list.push(diagnostic);
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many things are wrong.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// All of them, in the order of the sources and the positions in them.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        let mut sorted: Vec<&Diagnostic> = self.list.iter().collect();
        sorted.sort_by_key(|d| d.at.as_ref().map(|(at, _)| (at.source, at.start)));
        sorted.into_iter()
    }

    /// The text for people: for each a title, the line with a caret, and what to do; at the end how
    /// many there are.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let mut text = String::new();
        for diagnostic in self.iter() {
            text.push_str(&renderer.render(&[self.group(diagnostic)]));
            text.push_str("\n\n");
        }
        let count = self.len();
        let _ = writeln!(
            text,
            "{count} error{} in the configuration",
            if count == 1 { "" } else { "s" }
        );
        text
    }

    fn group<'d>(&'d self, diagnostic: &'d Diagnostic) -> Group<'d> {
        let mut group = Group::with_title(Level::ERROR.primary_title(diagnostic.message.as_str()));
        let primary = diagnostic.at.iter().map(|a| (AnnotationKind::Primary, a));
        let others = diagnostic
            .others
            .iter()
            .map(|a| (AnnotationKind::Context, a));
        let mut annotations: Vec<_> = primary.chain(others).collect();
        // One snippet for each source, the one of the error first.
        while let Some((_, (first, _))) = annotations.first() {
            let source = self.sources.get(*first);
            let index = first.source;
            let (here, elsewhere) = annotations
                .into_iter()
                .partition::<Vec<_>, _>(|(_, (at, _))| at.source == index);
            annotations = elsewhere;
            // A flag has neither line nor column, and its text names it.
            let mut snippet = Snippet::source(source.text.as_str());
            if source.kind == SourceKind::File {
                snippet = snippet.path(&*source.name);
            } else {
                snippet = snippet.line_numbering(false);
            }
            group = group.element(snippet.annotations(here.into_iter().map(
                |(kind, (at, label))| {
                    let annotation = kind.span(clamp(at.range(), &source.text));
                    if label.is_empty() {
                        annotation
                    } else {
                        annotation.label(label.as_str())
                    }
                },
            )));
        }
        for help in &diagnostic.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        group
    }

    /// The same for programs: a list of objects with `message`, `source`, `line`, `column`, `label`,
    /// `others` and `help`.
    pub fn to_json(&self) -> serde_json::Value {
        let position = |at: At, label: &str| {
            let place = self.sources.place(at);
            serde_json::json!({
                "source": &*place.source,
                "line": (place.line > 0).then_some(place.line),
                "column": (place.column > 0).then_some(place.column),
                "label": label,
            })
        };
        self.iter()
            .map(|d| {
                let mut object = match &d.at {
                    Some((at, label)) => position(*at, label),
                    None => serde_json::json!({}),
                };
                object["message"] = d.message.as_str().into();
                object["help"] = d.help.clone().into();
                object["others"] = d.others.iter().map(|(at, l)| position(*at, l)).collect();
                object
            })
            .collect()
    }
}

/// Keeps a range inside its text, so that an error at the end of a file can be shown.
fn clamp(range: Range<usize>, text: &str) -> Range<usize> {
    let end = range.end.min(text.len());
    range.start.min(end)..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Diagnostics {
        let mut diagnostics = Diagnostics::default();
        diagnostics.sources.add(Source {
            kind: SourceKind::File,
            name: "site.toml".into(),
            text: text.into(),
            base: "/".into(),
        });
        diagnostics
    }

    fn at(start: u32, end: u32) -> At {
        At {
            source: 0,
            start,
            end,
        }
    }

    #[test]
    fn shows_line_caret_other_places_and_help() {
        let mut diagnostics = file("a = 1\nbé = 2\n");
        diagnostics.push(
            Diagnostic::new(at(6, 9), "`bé` is wrong", "here")
                .with(at(0, 1), "because of this")
                .help("take it away"),
        );
        insta::assert_snapshot!(diagnostics.render(false), @r#"
        error: `bé` is wrong
         --> site.toml:2:1
          |
        1 | a = 1
          | - because of this
        2 | bé = 2
          | ^^ here
          |
          = help: take it away

        1 error in the configuration
        "#);
        assert_eq!(
            diagnostics.sources.place(at(10, 11)),
            Place {
                source: "site.toml".into(),
                line: 2,
                column: 4
            }
        );
    }

    #[test]
    fn one_for_each_cause_in_the_order_of_the_file() {
        let mut diagnostics = file("first = 1\nsecond = 2\n");
        diagnostics.push(Diagnostic::new(at(10, 16), "two", ""));
        diagnostics.push(Diagnostic::new(at(10, 16), "two again", ""));
        diagnostics.push(Diagnostic::new(at(0, 5), "one", ""));
        let messages: Vec<_> = diagnostics.iter().map(|d| d.message.as_str()).collect();
        assert_eq!(messages, ["one", "two"]);
        assert_eq!(diagnostics.to_json()[1]["line"], 2);
    }

    #[test]
    fn a_position_behind_the_end_is_shown_at_the_end() {
        let mut diagnostics = file("a =");
        diagnostics.push(Diagnostic::new(at(3, 9), "a value is missing", ""));
        assert!(diagnostics.render(false).contains("a ="));
    }
}
