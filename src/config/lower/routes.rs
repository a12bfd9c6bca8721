//! The routes of a site.

use std::sync::Arc;

use super::answer::Answer;
use super::read::Reader;
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::Route;
use crate::config::raw::{Entry, Item, Table, Value};
use crate::config::schema::Section;
use crate::http::router::{Pattern, Router, ValueTest, When};

/// A router without routes.
fn empty() -> Router<Vec<Arc<Route>>> {
    Router::build(Vec::new()).expect("no routes can't conflict")
}

impl Reader<'_> {
    /// The table `routes` of a site.
    pub(super) fn routes(&mut self, site: &Table, inherited: &Answer) -> Router<Vec<Arc<Route>>> {
        let Some(table) = self.table(site, Section::Site, "routes") else {
            return empty();
        };
        let mut routes = Vec::new();
        let mut places: Vec<At> = Vec::new();
        let mut id = 0;
        for entry in &table.entries {
            let pattern = match Pattern::parse(&entry.key) {
                Ok(pattern) => Some(pattern),
                Err(error) => {
                    self.pattern_error(entry.key_at, &entry.key, "the route", &error);
                    None
                }
            };
            let alternatives = self.alternatives(entry, inherited, pattern.as_ref(), &mut id);
            if let Some(pattern) = pattern {
                routes.push((pattern, alternatives));
                places.push(entry.key_at);
            }
        }
        Router::build(routes).unwrap_or_else(|conflicts| {
            for conflict in conflicts {
                self.diagnostics.push(
                    Diagnostic::new(
                        places[conflict.second],
                        conflict.to_string(),
                        "this route never answers",
                    )
                    .with(places[conflict.first], "this one matches them already")
                    .help(
                        "take one away; where one path needs several answers, write a list of \
                         tables with `when`",
                    ),
                );
            }
            empty()
        })
    }

    /// The value of a route: a table, or a list of tables with conditions.
    fn alternatives(
        &mut self,
        entry: &Entry,
        inherited: &Answer,
        pattern: Option<&Pattern>,
        id: &mut usize,
    ) -> Vec<Arc<Route>> {
        let items = match &entry.item.value {
            Value::Array(items) if !items.is_empty() => items.as_slice(),
            _ => std::slice::from_ref(&entry.item),
        };
        let mut routes: Vec<Arc<Route>> = Vec::with_capacity(items.len());
        let mut always: Option<&Item> = None;
        for item in items {
            let Value::Table(table) = &item.value else {
                let message = format!("the route `{}` needs a table", entry.key);
                let label = match &item.value {
                    Value::Array(_) => "this list is empty".to_owned(),
                    other => format!("this is {}", other.kind()),
                };
                self.diagnostics
                    .push(Diagnostic::new(item.at, message, label).help(format!(
                        "write it such as \"{}\" = {{ redirect = \"/new\" }}",
                        entry.key
                    )));
                continue;
            };
            if let Some(always) = always {
                self.diagnostics.push(
                    Diagnostic::new(item.at, "this alternative is never reached", "")
                        .with(always.at, "without `when`, this one always answers")
                        .help("give the earlier one a `when`, or put it at the end"),
                );
            }
            self.unknown_keys(table, Section::Route);
            let when = self.when(table);
            if when.is_none() && table.get("when").is_none() {
                always = Some(item);
            }
            let answer = self.answer(table, Section::Route, inherited, pattern);
            *id += 1;
            routes.push(Arc::new(route(*id, &entry.key, when, answer)));
        }
        routes
    }

    fn when(&mut self, route: &Table) -> Option<When> {
        const AT: Section = Section::When;
        let table = self.table(route, Section::Route, "when")?;
        self.unknown_keys(table, AT);
        let mut when = When::default();
        for (method, item) in self.strings(table, AT, "method").unwrap_or_default() {
            if let Err(error) = when.add_method(&method) {
                self.pattern_error(item.at, &method, "the method", &error);
            }
        }
        if let Some(headers) = self.table(table, AT, "header") {
            for entry in &headers.entries {
                let Some(test) = self.value_test(entry) else {
                    continue;
                };
                if let Err(error) = when.add_header(&entry.key, test) {
                    self.pattern_error(entry.key_at, &entry.key, "the field", &error);
                }
            }
        }
        if let Some(query) = self.table(table, AT, "query") {
            for entry in &query.entries {
                if let Some(test) = self.value_test(entry) {
                    when.add_query(&entry.key, test);
                }
            }
        }
        Some(when).filter(|when| !when.is_empty())
    }

    fn value_test(&mut self, entry: &Entry) -> Option<ValueTest> {
        let text = match &entry.item.value {
            Value::Boolean(present) => return Some(ValueTest::from(*present)),
            Value::String(text) => self.filled(entry.item.at, text)?,
            other => {
                let message = format!("the condition `{}` needs a string", entry.key);
                let label = format!("this is {}", other.kind());
                self.diagnostics
                    .push(Diagnostic::new(entry.item.at, message, label).help(
                        "write a value, in which * is anything, or \"~expression\"; true is any \
                         value, false is none",
                    ));
                return None;
            }
        };
        match ValueTest::parse(&text) {
            Ok(test) => Some(test),
            Err(error) => {
                self.pattern_error(entry.item.at, &text, "the condition", &error);
                None
            }
        }
    }
}

/// A route that is made of its parts.
pub(super) fn route(id: usize, pattern: &str, when: Option<When>, answer: Answer) -> Route {
    Route {
        id,
        pattern: pattern.into(),
        when,
        action: answer.action,
        headers: answer.headers,
        cache_control: answer.cache_control,
        cors: answer.cors,
        error_pages: answer.error_pages,
    }
}
