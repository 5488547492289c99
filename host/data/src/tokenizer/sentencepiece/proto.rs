//! Reads `tokenizer.model`: the few fields of SentencePiece's `ModelProto` that encoding needs.
//!
//! Protocol buffers are tagged values: a varint holds the field number and the wire type, then the value follows. Fields that
//! are not wanted are skipped by their length. Every length is checked against what is left, nesting is two levels by
//! construction, and pieces are bounded by the file's own bytes. Field numbers: `sentencepiece_model.proto`.

use super::{Algorithm, PieceKind, Spec};

/// Most pieces of a vocabulary; the largest released ones have 262144.
const MAX_PIECES: usize = 1 << 22;

type Result<T> = std::result::Result<T, String>;

/// One field's value.
enum Field<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    /// 64-bit values, of which no wanted field is one.
    Other,
}

impl<'a> Field<'a> {
    fn bytes(self) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err("a field has another type than SentencePiece gives it".into()),
        }
    }

    fn text(self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "a text is not UTF-8".into())
    }

    fn number(self) -> Result<u64> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err("a field has another type than SentencePiece gives it".into()),
        }
    }

    /// An `int32`, which is stored as 64 bits where it is negative.
    fn id(self) -> Result<Option<u32>> {
        let value = self.number()? as i64;
        Ok(u32::try_from(value).ok())
    }

    fn float(self) -> Result<f32> {
        match self {
            Self::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err("a score is not a 32-bit float".into()),
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let count = usize::try_from(count).ok().filter(|&count| count <= self.rest.len());
        let count = count.ok_or("the file is cut off or not a SentencePiece model")?;
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number has more than ten bytes".into())
    }

    /// The next field, or `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Other
            }
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            kind => return Err(format!("wire type {kind} occurs in no SentencePiece model")),
        };
        Ok(Some((tag >> 3, field)))
    }
}

/// Calls `each` on every field of a message.
fn fields<'a>(bytes: &'a [u8], mut each: impl FnMut(u64, Field<'a>) -> Result<()>) -> Result<()> {
    let mut reader = Reader { rest: bytes };
    while let Some((number, field)) = reader.next()? {
        each(number, field)?;
    }
    Ok(())
}

/// Reads a model file.
pub(super) fn read(bytes: &[u8]) -> Result<Spec> {
    let mut spec = Spec::default();
    let mut is_model = false;
    fields(bytes, |number, field| {
        match number {
            1 => {
                if spec.pieces.len() == MAX_PIECES {
                    return Err(format!("more than {MAX_PIECES} pieces"));
                }
                let (mut text, mut score, mut kind) = ("", 0.0, PieceKind::Normal);
                fields(field.bytes()?, |number, field| {
                    match number {
                        1 => text = field.text()?,
                        2 => score = field.float()?,
                        3 => kind = PieceKind::from_number(field.number()? as i64).ok_or("a piece is of an unknown type")?,
                        _ => {}
                    }
                    Ok(())
                })?;
                spec.pieces.push((text.to_owned(), score, kind));
            }
            2 => {
                is_model = true;
                fields(field.bytes()?, |number, field| {
                    match number {
                        3 => {
                            spec.algorithm = match field.number()? {
                                1 => Algorithm::Unigram,
                                2 => Algorithm::Bpe,
                                3 => return Err("word models are not read, only unigram and BPE".into()),
                                4 => return Err("character models are not read, only unigram and BPE".into()),
                                other => return Err(format!("model type {other} is unknown")),
                            }
                        }
                        24 => spec.space_is_suffix = field.number()? != 0,
                        35 => spec.byte_fallback = field.number()? != 0,
                        40 => spec.unknown = field.id()?,
                        41 => spec.bos = field.id()?,
                        42 => spec.eos = field.id()?,
                        43 => spec.pad = field.id()?,
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            3 => fields(field.bytes()?, |number, field| {
                match number {
                    2 => spec.charsmap = field.bytes()?.to_vec(),
                    3 => spec.dummy_prefix = field.number()? != 0,
                    4 => spec.collapse_spaces = field.number()? != 0,
                    5 => spec.escape_spaces = field.number()? != 0,
                    _ => {}
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    if spec.pieces.is_empty() || !is_model {
        return Err("this is not a SentencePiece model: it has no pieces or says not how it was trained".into());
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(mut value: u64) -> Vec<u8> {
        let mut out = vec![];
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
        out
    }

    fn message(number: u64, body: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(body.len() as u64), body.to_vec()].concat()
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let body = [message(1, text.as_bytes()), vec![2 << 3 | 5], score.to_le_bytes().to_vec(), vec![3 << 3, kind]].concat();
        message(1, &body)
    }

    fn model() -> Vec<u8> {
        let trainer = [vec![3 << 3, 2], varint(35 << 3), vec![1], varint(43 << 3), varint(u64::MAX)].concat();
        let normalizer = [message(2, &[]), vec![3 << 3, 0, 4 << 3, 0]].concat();
        [piece("<unk>", 0.0, 2), piece("\u{2581}a", -1.5, 1), message(2, &trainer), message(3, &normalizer)].concat()
    }

    #[test]
    fn fields_are_found() {
        let spec = read(&model()).unwrap();
        assert_eq!(spec.algorithm, Algorithm::Bpe);
        assert_eq!(spec.pieces[1], ("\u{2581}a".to_owned(), -1.5, PieceKind::Normal));
        assert!(spec.byte_fallback && !spec.dummy_prefix && !spec.collapse_spaces && spec.escape_spaces);
        assert_eq!((spec.unknown, spec.bos, spec.eos, spec.pad), (Some(0), Some(1), Some(2), None));
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let whole = model();
        for cut in 0..whole.len() {
            let _ = read(&whole[..cut]);
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[cut] = value;
                let _ = read(&bytes);
            }
        }
        for (bytes, part) in [
            (vec![], "not a SentencePiece"),
            (b"{\"version\": 1}".to_vec(), "wire type"),
            (vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], "cut off"),
            ([0xff; 12].to_vec(), "ten bytes"),
            (message(2, &[3 << 3, 3]), "word models"),
            (message(1, &message(1, &[0xff])), "UTF-8"),
            (piece("a", 0.0, 9), "unknown type"),
        ] {
            let error = read(&bytes).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
