//! Rows of a dataset file: JSON arrays, JSON lines and plain text, streamed.
//!
//! The framing is done here by counting brackets outside of strings, so that one row at a time is in memory, every
//! error names a line, and a file called `.json` may hold an array or lines. A row is handed on as JSON text: what its
//! fields mean is the business of a dataset plugin.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::split::sample_rows;
use crate::{DataError, Result};

/// Rows that go to a dataset plugin in one call.
pub const ROWS_PER_BATCH: usize = 256;
/// Largest row.
const MAX_ROW_BYTES: usize = 64 << 20;
/// Deepest nesting of a row, `serde_json`'s own limit.
const MAX_DEPTH: usize = 127;

/// A dataset as named on the command line: `path` or `path#count`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetSource {
    /// The file.
    pub path: PathBuf,
    /// How many rows to take: fewer than there are are drawn at random, more repeat them.
    pub count: Option<usize>,
}

impl DatasetSource {
    /// Reads `path#count`. A path that exists is taken literally, `#` included.
    pub fn parse(text: &str) -> Result<Self> {
        if !Path::new(text).exists()
            && let Some((path, count)) = text.rsplit_once('#')
        {
            return match count.parse::<usize>() {
                Ok(count) if count > 0 => Ok(Self { path: path.into(), count: Some(count) }),
                _ => Err(DataError::Setting(format!("`{text}`: `#{count}` is no positive number of rows"))),
            };
        }
        Ok(Self { path: text.into(), count: None })
    }

    /// Streams all rows, whatever `count` says.
    pub fn rows(&self) -> Result<Rows> {
        Rows::open(&self.path)
    }

    /// Reads the rows that `count` asks for; without a seed the first ones.
    pub fn read(&self, seed: Option<u64>) -> Result<Vec<Row>> {
        let rows = self.rows()?;
        let Some(count) = self.count else { return rows.collect() };
        if seed.is_none() {
            let first: Vec<Row> = rows.take(count).collect::<Result<_>>()?;
            return Ok(sample_rows(first.len(), count, None).into_iter().map(|row| first[row].clone()).collect());
        }
        let all: Vec<Row> = rows.collect::<Result<_>>()?;
        Ok(sample_rows(all.len(), count, seed).into_iter().map(|row| all[row].clone()).collect())
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Line at which it begins, from 1.
    pub line: u64,
    /// A JSON object, as text.
    pub json: String,
}

impl Row {
    /// The row as a value.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.json).expect("rows are checked when they are read")
    }
}

/// How rows are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Objects one after another, usually one a line.
    Objects,
    /// Objects in an array, separated by commas.
    Array,
    /// Each line that is not blank is `{"text": line}`.
    Text,
}

/// Streams the rows of a file. The first error ends it.
#[derive(Debug)]
pub struct Rows {
    path: PathBuf,
    input: BufReader<File>,
    framing: Framing,
    line: u64,
    rows: u64,
    done: bool,
}

impl Rows {
    /// Opens a `.jsonl`, `.json` or `.txt` file.
    pub fn open(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let text = match extension.as_deref() {
            Some("jsonl" | "json" | "ndjson") => false,
            Some("txt") => true,
            _ => {
                let reason = format!("`{}`: datasets are read from .jsonl, .json and .txt files", path.display());
                return Err(DataError::Setting(reason));
            }
        };
        let file = File::open(path).map_err(|source| DataError::io("open", path, source))?;
        let mut rows = Self {
            path: path.to_owned(),
            input: BufReader::with_capacity(1 << 18, file),
            framing: if text { Framing::Text } else { Framing::Objects },
            line: 1,
            rows: 0,
            done: false,
        };
        rows.skip_mark()?;
        if !text && rows.peek_solid()? == Some(b'[') {
            rows.advance(b'[');
            rows.framing = Framing::Array;
        }
        Ok(rows)
    }

    /// Groups rows for a dataset plugin; the last group may be smaller.
    pub fn batches(mut self, size: usize) -> impl Iterator<Item = Result<Vec<Row>>> {
        std::iter::from_fn(move || {
            let batch: Result<Vec<Row>> = self.by_ref().take(size).collect();
            batch.map(|rows| (!rows.is_empty()).then_some(rows)).transpose()
        })
    }

    fn fail(&self, line: u64, reason: impl Into<String>) -> DataError {
        DataError::Row { path: self.path.clone(), line, reason: reason.into() }
    }

    /// Skips a UTF-8 byte order mark.
    fn skip_mark(&mut self) -> Result<()> {
        let path = self.path.clone();
        let start = self.input.fill_buf().map_err(|source| DataError::io("read", &path, source))?;
        let mark = start.starts_with(b"\xef\xbb\xbf");
        let utf16 = start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff");
        if utf16 {
            return Err(self.fail(1, "the file is UTF-16; save it as UTF-8"));
        }
        if mark {
            self.input.consume(3);
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        match self.input.fill_buf() {
            Ok(buffer) => Ok(buffer.first().copied()),
            Err(source) => Err(DataError::io("read", &self.path, source)),
        }
    }

    fn advance(&mut self, byte: u8) {
        self.line += u64::from(byte == b'\n');
        self.input.consume(1);
    }

    /// The next byte that is no whitespace, not consumed.
    fn peek_solid(&mut self) -> Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.advance(byte);
        }
        Ok(None)
    }

    fn next_row(&mut self) -> Result<Option<Row>> {
        match self.framing {
            Framing::Text => self.next_text(),
            Framing::Objects => match self.peek_solid()? {
                None => Ok(None),
                Some(b'{') => self.next_object().map(Some),
                Some(_) => Err(self.fail(self.line, "a row must be a JSON object, beginning with `{`")),
            },
            Framing::Array => {
                let mut next = self.peek_solid()?;
                if self.rows > 0 && next == Some(b',') {
                    self.advance(b',');
                    next = self.peek_solid()?;
                } else if self.rows > 0 && next == Some(b'{') {
                    return Err(self.fail(self.line, "a comma is missing between two rows"));
                }
                match next {
                    Some(b'{') => self.next_object().map(Some),
                    Some(b']') => {
                        self.advance(b']');
                        match self.peek_solid()? {
                            None => Ok(None),
                            Some(_) => Err(self.fail(self.line, "something follows the end of the array")),
                        }
                    }
                    None => Err(self.fail(self.line, "the array does not end; the file is cut off")),
                    Some(_) => Err(self.fail(self.line, "a row must be a JSON object, beginning with `{`")),
                }
            }
        }
    }

    /// Takes one object, up to the bracket that closes it, and checks it.
    fn next_object(&mut self) -> Result<Row> {
        let line = self.line;
        let mut bytes = Vec::new();
        let mut depth = 0usize;
        let (mut in_string, mut escaped) = (false, false);
        loop {
            let buffer = match self.input.fill_buf() {
                Ok(buffer) => buffer,
                Err(source) => return Err(DataError::io("read", &self.path, source)),
            };
            if buffer.is_empty() {
                return Err(self.fail(line, "the row does not end; the file is cut off or a bracket is missing"));
            }
            let mut used = 0;
            let mut closed = false;
            for &byte in buffer {
                used += 1;
                self.line += u64::from(byte == b'\n');
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                if depth == 0 || depth > MAX_DEPTH {
                    closed = depth == 0;
                    break;
                }
            }
            bytes.extend_from_slice(&buffer[..used]);
            self.input.consume(used);
            if bytes.len() > MAX_ROW_BYTES {
                return Err(self.fail(line, format!("the row is larger than {MAX_ROW_BYTES} bytes")));
            }
            if depth > MAX_DEPTH {
                return Err(self.fail(line, format!("the row is nested deeper than {MAX_DEPTH} levels")));
            }
            if closed {
                break;
            }
        }
        let json = String::from_utf8(bytes).map_err(|_| self.fail(line, "the row is not UTF-8"))?;
        if let Err(error) = serde_json::from_str::<Value>(&json) {
            let at = line + error.line() as u64 - 1;
            return Err(self.fail(at, format!("the row is not valid JSON: {error}")));
        }
        self.rows += 1;
        Ok(Row { line, json })
    }

    fn next_text(&mut self) -> Result<Option<Row>> {
        loop {
            let line = self.line;
            let mut bytes = Vec::new();
            let limit = MAX_ROW_BYTES as u64 + 1;
            (&mut self.input)
                .take(limit)
                .read_until(b'\n', &mut bytes)
                .map_err(|source| DataError::io("read", &self.path, source))?;
            if bytes.is_empty() {
                return Ok(None);
            }
            if bytes.len() > MAX_ROW_BYTES {
                return Err(self.fail(line, format!("the line is longer than {MAX_ROW_BYTES} bytes")));
            }
            self.line += 1;
            let text = std::str::from_utf8(&bytes).map_err(|_| self.fail(line, "the line is not UTF-8"))?;
            let text = text.trim_end_matches(['\n', '\r']);
            if !text.trim().is_empty() {
                self.rows += 1;
                return Ok(Some(Row { line, json: serde_json::json!({ "text": text }).to_string() }));
            }
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.next_row().transpose();
        self.done = !matches!(row, Some(Ok(_)));
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<Row>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        Rows::open(&path)?.collect()
    }

    fn lines(rows: &[Row]) -> Vec<(u64, &str)> {
        rows.iter().map(|row| (row.line, row.json.as_str())).collect()
    }

    #[test]
    fn lines_arrays_and_marks_are_read_alike() {
        let expected = [(1, r#"{"a": "}\"]"}"#), (3, r#"{"b": [1, {}]}"#)];
        let text = "{\"a\": \"}\\\"]\"}\r\n\n{\"b\": [1, {}]}\n";
        assert_eq!(lines(&read("x.jsonl", text).unwrap()), expected);
        assert_eq!(lines(&read("x.json", text).unwrap()), expected);
        assert_eq!(lines(&read("x.jsonl", format!("\u{feff}{text}")).unwrap()), expected);
        let array = "\u{feff}[{\"a\": \"}\\\"]\"},\n\n{\"b\": [1, {}]}\n]\n";
        assert_eq!(lines(&read("x.json", array).unwrap())[1], expected[1]);
        assert!(read("x.json", "[]").unwrap().is_empty());
        assert!(read("x.jsonl", "\n \n").unwrap().is_empty());
        let text = read("x.txt", "one \"two\"\r\n\n  \nthree").unwrap();
        assert_eq!(lines(&text), [(1, r#"{"text":"one \"two\""}"#), (4, r#"{"text":"three"}"#)]);
    }

    #[test]
    fn broken_files_say_where() {
        let deep = format!("{{\"a\": {}", "[".repeat(1_000_000));
        let cases: [(&str, Vec<u8>, &str, &str); 15] = [
            ("x.jsonl", b"{}\n{\"a\": }\n".into(), "line 2", "not valid JSON"),
            ("x.jsonl", b"{}\n\n{\"a\":\n 1\n".into(), "line 3", "cut off"),
            ("x.jsonl", b"{}\n{\"a\": \"open\n".into(), "line 2", "cut off"),
            ("x.jsonl", b"{}\n17\n".into(), "line 2", "JSON object"),
            ("x.jsonl", b"{}\n{]\n".into(), "line 2", "not valid JSON"),
            ("x.jsonl", b"\n{\"a\": \"\xff\"}\n".into(), "line 2", "UTF-8"),
            ("x.jsonl", b"\xff\xfe{\0}\0".into(), "line 1", "UTF-16"),
            ("x.jsonl", deep.into(), "line 1", "nested deeper"),
            ("x.json", b"[{},\n{}".into(), "line 2", "cut off"),
            ("x.json", b"[{}\n{}]".into(), "line 2", "comma"),
            ("x.json", b"[{}, 1]".into(), "line 1", "JSON object"),
            ("x.json", b"[{}]\n[{}]".into(), "line 2", "follows the end"),
            ("x.json", b"[{\n\"a\":\n1 2}]".into(), "line 3", "not valid JSON"),
            ("x.json", b"\"text\"".into(), "line 1", "JSON object"),
            ("x.txt", b"good\n\xc3\n".into(), "line 2", "UTF-8"),
        ];
        for (name, content, place, part) in cases {
            let error = read(name, &content).expect_err(part).to_string();
            assert!(error.contains(place) && error.contains(part), "wanted {place}, `{part}`: {error}");
        }
        assert!(read("x.parquet", "").unwrap_err().to_string().contains(".jsonl"));
    }

    #[test]
    fn every_truncation_of_an_array_is_an_error() {
        let text = "[{\"a\": [1, \"x\\\"\"]}, {\"b\": {}}]";
        assert_eq!(read("x.json", text).unwrap().len(), 2);
        for cut in 1..text.len() {
            assert!(read("x.json", &text[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn sources_take_counts_and_literal_paths() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a#3.jsonl");
        let rows: String = (0..10).map(|i| format!("{{\"i\": {i}}}\n")).collect();
        std::fs::write(&path, rows).unwrap();
        let literal = DatasetSource::parse(path.to_str().unwrap()).unwrap();
        assert_eq!(literal.count, None);
        assert_eq!(literal.read(Some(1)).unwrap().len(), 10);
        let few = DatasetSource::parse(&format!("{}#4", path.display())).unwrap();
        assert_eq!((few.path.as_path(), few.count), (path.as_path(), Some(4)));
        assert_eq!(few.read(None).unwrap()[3].value()["i"], 3);
        assert_eq!(few.read(Some(1)).unwrap(), few.read(Some(1)).unwrap());
        assert_ne!(few.read(Some(1)).unwrap(), few.read(None).unwrap());
        let many = DatasetSource { count: Some(23), ..few };
        assert_eq!(many.read(None).unwrap().len(), 23);
        assert!(DatasetSource::parse("nothing.jsonl#x").is_err());
        assert!(DatasetSource::parse("nothing.jsonl#0").is_err());
        let sizes: Vec<usize> = literal.rows().unwrap().batches(4).map(|batch| batch.unwrap().len()).collect();
        assert_eq!(sizes, [4, 4, 2]);
    }
}
