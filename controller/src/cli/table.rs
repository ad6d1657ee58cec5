//! Columns.

use std::fmt::Write as _;

/// Rows under a heading, two spaces between columns, nothing at the end of a line.
#[must_use]
pub(super) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            // Writing to a `String` cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let mut text = line(heading);
    for row in rows {
        text.push_str(&line(row.each_ref().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "long one".to_owned()], ["bcdef".to_owned(), "·".to_owned()]];
        assert_eq!(table(["ID", "STATE"], &rows), "ID     STATE\na      long one\nbcdef  ·\n");
    }
}
