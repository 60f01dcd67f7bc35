//! A violation for people, as one HTML page that needs nothing else.

use std::fmt::{Debug, Write as _};

use super::check::{Report, Verdict};

/// Writes a page with the windows of a report that found violations: time runs to the right, one line per operation.
pub fn html<K: Debug>(report: &Report<K>) -> String {
    let mut page = String::from(
        "<!doctype html><meta charset=\"utf-8\"><title>Linearizability</title><style>\
         body{font:14px sans-serif;margin:2em}.row{position:relative;height:24px;border-bottom:1px solid #eee}\
         .op{position:absolute;height:18px;top:3px;background:#9cf;border-radius:3px}\
         .open{background:linear-gradient(to right,#fc9,#fff)}\
         .row span{position:absolute;left:4px;top:3px;white-space:nowrap}</style>\n",
    );
    let summary = report.to_string();
    let headline = escape(summary.lines().next().unwrap_or_default());
    page.push_str(&format!("<h1>{headline}</h1>\n"));
    let Verdict::NotLinearizable(violations) = &report.verdict else { return page };
    for violation in violations.iter().filter(|violation| !violation.window.entries.is_empty()) {
        let entries = &violation.window.entries;
        let from = entries.iter().map(|entry| entry.call).min().unwrap_or(0);
        let to = entries.iter().map(|entry| entry.at.unwrap_or(entry.call)).max().unwrap_or(0);
        let span = to.saturating_sub(from).max(1) as f64;
        let percent = |time: u64| (time - from) as f64 * 100.0 / span;
        let key = escape(&format!("{:?}", violation.key));
        let _ = writeln!(page, "<h2>key {key}</h2><p>No order explains these operations.</p>");
        for entry in entries {
            let left = percent(entry.call);
            let width = (entry.at.map_or(100.0, percent) - left).max(0.3);
            let open = if entry.at.is_none() { " open" } else { "" };
            let text = escape(&format!("client {}: {}", entry.client, entry.text));
            let _ = writeln!(
                page,
                "<div class=\"row\"><div class=\"op{open}\" style=\"left:{left:.3}%;width:{width:.3}%\"></div>\
                 <span>{text}</span></div>"
            );
        }
    }
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
