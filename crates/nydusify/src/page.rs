//! Pages for a browser: one file, without scripts or anything from elsewhere.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Looks the same in light and in dark, and on paper.
const STYLE: &str = include_str!("page.css");

/// A page with this title and this body, which is HTML.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// Text that means itself in HTML, in attributes as well.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            control if control.is_control() => out.extend(control.escape_debug()),
            other => out.push(other),
        }
    }
    out
}

/// A row of figures, each with what it is of.
pub fn tiles(figures: &[(String, &str)]) -> String {
    let mut out = String::from("<div class=\"tiles\">\n");
    for (figure, what) in figures {
        let (figure, what) = (escape(figure), escape(what));
        let _ = writeln!(
            out,
            "<div class=\"tile\"><b>{figure}</b><span>{what}</span></div>"
        );
    }
    out + "</div>\n"
}

/// A table: the heads of its columns, and its cells, which are HTML. The last column is text, all others are numbers.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=\"scroll\"><table>\n<tr>");
    for head in heads {
        let _ = write!(out, "<th>{}</th>", escape(head));
    }
    out.push_str("</tr>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out + "</table></div>\n"
}

/// One bar with parts: the class of each, its name, its size, and how the size is written.
pub fn bar(parts: &[(&str, &str, u64, String)]) -> String {
    let whole: u64 = parts.iter().map(|(.., size, _)| size).sum();
    let mut bar = String::from("<div class=\"bar\">");
    let mut legend = String::from("<ul class=\"legend\">\n");
    for (class, name, size, written) in parts {
        let percent = *size as f64 * 100.0 / whole.max(1) as f64;
        let (name, written) = (escape(name), escape(written));
        if *size != 0 {
            let _ = write!(
                bar,
                "<span class=\"{class}\" style=\"width:{percent:.3}%\" title=\"{name}: {written}\"></span>"
            );
        }
        let _ = writeln!(
            legend,
            "<li><i class=\"{class}\"></i>{name} <b>{written}</b> <em>{percent:.1}%</em></li>"
        );
    }
    format!("{bar}</div>\n{legend}</ul>\n")
}

/// Writes a page to a file, whole or not at all.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    use std::os::unix::fs::PermissionsExt as _;
    // As any other file: the umask takes from it what the user does not want.
    let builder = builder.permissions(std::fs::Permissions::from_mode(0o666));
    let mut file = builder.tempfile_in(dir).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_means_itself() {
        let hostile = "</title><script>alert('x')</script>\u{1b}[2J&\"";
        let page = page(hostile, &table(&["a"], &[vec![escape(hostile)]]));
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains('\u{1b}'), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)"), "{page}");
    }

    #[test]
    fn parts_of_a_bar_add_up() {
        let parts = [
            ("a", "one", 1, "1".to_owned()),
            ("b", "none", 0, "0".to_owned()),
            ("c", "three", 3, "3".to_owned()),
        ];
        let bar = bar(&parts);
        assert!(
            bar.contains("width:25.000%") && bar.contains("width:75.000%"),
            "{bar}"
        );
        assert_eq!(bar.matches("<span").count(), 2, "{bar}");
    }
}
