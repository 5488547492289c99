//! One view over a model's configuration and weights, wherever they come from.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::gguf::view::Model;
use crate::json::{MAX_CONFIG_BYTES, read_json};
use crate::{FormatError, Generation, Gguf, Result, SafetensorsFile, TensorView, bitsandbytes, float8, gguf};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Most shards of one model; the largest released ones have a few hundred.
const MAX_SHARDS: usize = 4096;

/// First parts of names of encoders' tensors in models with a head.
const BASE_PREFIXES: [&str; 1] = ["bert"];

/// Where a checkpoint came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A GGUF file.
    Gguf,
    /// A folder in the Hugging Face layout.
    HuggingFace,
}

/// A model: `config.json` content and tensors under their Hugging Face names, in Hugging Face row order.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    names: Vec<String>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Gguf(Model),
    Folder(Folder),
}

/// Files of a folder, and which of them holds a tensor.
#[derive(Debug, Default)]
struct Folder {
    shards: Vec<SafetensorsFile>,
    owner: HashMap<String, usize>,
}

impl bitsandbytes::Files for Folder {
    fn holding(&self, tensor: &str) -> Option<&SafetensorsFile> {
        self.owner.get(tensor).map(|&shard| &self.shards[shard])
    }
}

impl Checkpoint {
    /// Opens a GGUF file, a Hugging Face folder, or a folder that holds exactly one GGUF file and no `config.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = path.metadata().map_err(|source| FormatError::io("open", path, source))?;
        if !metadata.is_dir() {
            return Self::open_file(path);
        }
        if path.join(CONFIG).is_file() {
            return Self::open_folder(path);
        }
        let entries = path.read_dir().map_err(|source| FormatError::io("list", path, source))?;
        let mut ggufs: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|file| file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")))
            .filter(|file| !gguf::is_later_part(file))
            .collect();
        match (ggufs.pop(), ggufs.len()) {
            (Some(only), 0) => Self::open_file(&only),
            (Some(_), _) => Err(FormatError::invalid(path, "the folder holds several GGUF files; name one of them")),
            (None, _) => Err(FormatError::invalid(path, format!("the folder holds neither `{CONFIG}` nor a GGUF file"))),
        }
    }

    fn open_file(path: &Path) -> Result<Self> {
        let mut magic = [0; 4];
        let mut file = File::open(path).map_err(|source| FormatError::io("open", path, source))?;
        if file.read_exact(&mut magic).is_err() || magic != gguf::MAGIC {
            let reason = format!("this is no GGUF file; give one, or the folder that holds `{CONFIG}`");
            return Err(FormatError::invalid(path, reason));
        }
        Self::from_gguf(Gguf::open(path)?)
    }

    /// A model in a GGUF file that is already open, for example one embedded in a program.
    pub fn from_gguf(file: Gguf) -> Result<Self> {
        let model = Model::new(file)?;
        let path = model.file.path().to_owned();
        let config = gguf::config(&model.file, model.architecture)?;
        let names = model.file.tensors().iter().flat_map(|tensor| model.architecture.hf_names(tensor)).collect();
        Ok(Self { path, config, names, source: Source::Gguf(model) })
    }

    /// A folder with a `config.json` and perhaps no weights yet: what pretraining from scratch starts from.
    pub fn open_config(folder: &Path) -> Result<Self> {
        let config_path = folder.join(CONFIG);
        let config = read_json(&config_path, MAX_CONFIG_BYTES)?;
        if !config.is_object() {
            return Err(FormatError::invalid(&config_path, "the configuration is not a JSON object"));
        }
        let source = Source::Folder(Folder::default());
        Ok(Self { path: folder.to_owned(), config, names: Vec::new(), source })
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let config_path = folder.join(CONFIG);
        let config = read_json(&config_path, MAX_CONFIG_BYTES)?;
        if !config.is_object() {
            return Err(FormatError::invalid(&config_path, "the configuration is not a JSON object"));
        }
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        let mut owner = HashMap::new();
        let mut names = Vec::new();
        let mut shards = Vec::new();
        if single.is_file() {
            shards.push(SafetensorsFile::open(&single)?);
            names = shards[0].names();
            owner.extend(names.iter().map(|name| (name.clone(), 0)));
        } else if index.is_file() {
            let map = read_json(&index, MAX_CONFIG_BYTES)?;
            let map = map["weight_map"]
                .as_object()
                .ok_or_else(|| FormatError::invalid(&index, "`weight_map` is missing or not an object"))?;
            let mut files: HashMap<&str, usize> = HashMap::new();
            for (name, file) in map {
                let file = shard_name(&index, name, file)?;
                let shard = match files.get(file) {
                    Some(&shard) => shard,
                    None if shards.len() == MAX_SHARDS => {
                        return Err(FormatError::invalid(&index, format!("more than {MAX_SHARDS} shards")));
                    }
                    None if !folder.join(file).is_file() => {
                        let reason = format!("tensor `{name}` lies in `{file}`, which is not beside it; get the missing shard");
                        return Err(FormatError::invalid(&index, reason));
                    }
                    None => {
                        shards.push(SafetensorsFile::open(&folder.join(file))?);
                        files.insert(file, shards.len() - 1);
                        shards.len() - 1
                    }
                };
                if !shards[shard].contains(name) {
                    return Err(FormatError::missing(shards[shard].path(), name));
                }
                owner.insert(name.clone(), shard);
                names.push(name.clone());
            }
        } else {
            let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists());
            let hint = if pickled { "; convert `pytorch_model.bin`, pickled weights are not read" } else { "" };
            return Err(FormatError::invalid(folder, format!("neither `{WEIGHTS}` nor `{INDEX}` exists{hint}")));
        }
        // What lies beside a weight in 4 bits is part of it.
        names.retain(|name| bitsandbytes::weight_of(name).is_none_or(|weight| !owner.contains_key(weight)));
        Ok(Self { path: folder.to_owned(), config, names, source: Source::Folder(Folder { shards, owner }) })
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// GGUF or Hugging Face.
    pub fn kind(&self) -> Kind {
        match self.source {
            Source::Gguf(_) => Kind::Gguf,
            Source::Folder(_) => Kind::HuggingFace,
        }
    }

    /// `config.json`, or what a GGUF file's metadata says in the same spelling.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// How the model's authors want it sampled: `generation_config.json`, or a GGUF file's `general.sampling` keys.
    pub fn generation(&self) -> Result<Generation> {
        match &self.source {
            Source::Gguf(model) => Generation::from_gguf(&model.file),
            Source::Folder(_) => Generation::from_folder(&self.path),
        }
    }

    /// The GGUF file, for its vocabulary and chat template.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf(model) => Some(&model.file),
            Source::Folder(_) => None,
        }
    }

    /// Bytes of all weight files.
    pub fn total_bytes(&self) -> usize {
        match &self.source {
            Source::Gguf(model) => model.file.total_bytes(),
            Source::Folder(folder) => folder.shards.iter().map(SafetensorsFile::total_bytes).sum(),
        }
    }

    /// Tensor names in file order. Tied embeddings have no `lm_head.weight`.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Gguf(model) => model.contains(name),
            Source::Folder(folder) => in_folder(&folder.owner, name).is_some(),
        }
    }

    /// A tensor by its Hugging Face name, `[out, in]`.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        match &self.source {
            Source::Folder(folder) => {
                let Folder { shards, owner } = folder;
                let (name, shard) = in_folder(owner, name).ok_or_else(|| FormatError::missing(&self.path, name))?;
                if let Some(view) = bitsandbytes::tensor(&self.path, folder, name)? {
                    return Ok(view);
                }
                let stored = |name: &str| owner.get(name).map(|&shard| shards[shard].tensor(name)).transpose();
                match shards[shard].float8(name)? {
                    Some(kind) => float8::scaled(&self.path, name, kind, shards[shard].stored(name)?, stored),
                    None => shards[shard].tensor(name),
                }
            }
            Source::Gguf(model) => model.tensor(name),
        }
    }

    /// Says that a tensor will not be read soon: its part of the mapped file leaves this process's memory until it is.
    pub fn release(&self, name: &str) {
        match &self.source {
            Source::Gguf(model) => model.release(name),
            Source::Folder(folder) => {
                if let Some((name, shard)) = in_folder(&folder.owner, name)
                    && let Ok(TensorView { data: Cow::Borrowed(bytes), .. }) = folder.shards[shard].tensor(name)
                {
                    folder.shards[shard].release(bytes);
                }
            }
        }
    }

    /// As [`Checkpoint::release`], of bytes that a tensor borrowed from a file; of others, nothing.
    pub fn release_bytes(&self, bytes: &[u8]) {
        match &self.source {
            Source::Gguf(model) => model.file.release(bytes),
            Source::Folder(folder) => folder.shards.iter().for_each(|shard| shard.release(bytes)),
        }
    }

    /// Whether a tensor is stored in blocks with a scale, by its Hugging Face name; nothing is read for that.
    pub fn is_quantized(&self, name: &str) -> bool {
        match &self.source {
            Source::Folder(folder) => {
                in_folder(&folder.owner, name).is_some_and(|(name, _)| bitsandbytes::has_state(folder, name))
            }
            Source::Gguf(model) => model.is_quantized(name),
        }
    }

    /// A matrix `[in, out]` by its Hugging Face name, turned to `[out, in]`.
    pub fn transposed(&self, name: &str) -> Result<TensorView<'_>> {
        match &self.source {
            Source::Gguf(model) => model.transposed(name),
            Source::Folder(_) => self.tensor(name)?.turned(&self.path, name),
        }
    }

    /// Tensors of one shape and format as one tensor with a new first axis.
    pub fn stacked(&self, names: &[String]) -> Result<TensorView<'_>> {
        if let Source::Gguf(model) = &self.source
            && let Some(stack) = model.stack(names)?
        {
            return Ok(stack);
        }
        let parts = names.iter().map(|name| self.tensor(name)).collect::<Result<Vec<_>>>()?;
        let [first, rest @ ..] = parts.as_slice() else {
            return Err(FormatError::invalid(&self.path, "a stack of no tensors"));
        };
        if let Some(odd) = rest.iter().position(|part| part.shape != first.shape || part.format != first.format) {
            let reason = format!("`{}` and `{}` differ in shape or format and cannot be stacked", names[0], names[odd + 1]);
            return Err(FormatError::unsupported(&self.path, reason));
        }
        let shape = [parts.len()].iter().chain(&first.shape).copied().collect();
        let data: Vec<u8> = parts.iter().flat_map(|part| part.data.iter().copied()).collect();
        Ok(TensorView { format: first.format, shape, data: Cow::Owned(data) })
    }
}

/// The tensor's name in the files and its shard. The bare model of a family (`GPT2Model`, `BertModel`) is saved without the first part of
/// the names that the model with a head has, or the other way round.
fn in_folder<'a>(owner: &'a HashMap<String, usize>, name: &str) -> Option<(&'a str, usize)> {
    let find = |name: &str| owner.get_key_value(name).map(|(name, &shard)| (name.as_str(), shard));
    let shorter = || find(name.split_once('.').filter(|(_, rest)| rest.contains('.'))?.1);
    let longer = || BASE_PREFIXES.iter().find_map(|prefix| find(&format!("{prefix}.{name}")));
    find(name).or_else(shorter).or_else(longer)
}

/// A shard's file name, which must not lead out of the model's folder.
fn shard_name<'a>(index: &Path, tensor: &str, file: &'a Value) -> Result<&'a str> {
    file.as_str()
        .filter(|file| !file.is_empty() && *file != ".." && !file.contains(['/', '\\', '\0']))
        .ok_or_else(|| FormatError::invalid(index, format!("tensor `{tensor}` names no file of this folder: {file}")))
}
