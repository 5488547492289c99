//! From checkpoint tensors and declared distributions to the weight store.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use swift_formats::{
    Adapter as AdapterFile, AdapterTensor, Checkpoint, Format, LateTensor, TensorView, write_file, write_safetensors_late,
};
use swift_graph::Bindings;
use swift_plugin::{ExportEntry, Init, ModelPlan, ParamDecl, Recipe};
use swift_runtime::{Bytes, Device, Distribution, HostTensor, Inputs, Owner, Store, random};

use crate::{AdaptedModel, Result, ServeError};

/// A base parameter under its checkpoint name, widened to f32.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightTensor {
    /// Checkpoint name.
    pub name: String,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: Vec<f32>,
}

/// A parameter's bytes in a checkpoint, kept alive by the checkpoint that mapped them. Nothing is copied.
struct Mapped {
    checkpoint: Arc<Checkpoint>,
    recipe: Recipe,
}

impl Owner for Mapped {
    fn bytes(&self) -> &[u8] {
        match view(&self.checkpoint, &self.recipe) {
            Ok(TensorView { data: Cow::Borrowed(bytes), .. }) => bytes,
            _ => &[],
        }
    }

    fn release(&self) -> Option<Arc<dyn Owner>> {
        self.recipe.names().into_iter().for_each(|name| self.checkpoint.release(name));
        None
    }

    fn release_part(&self, part: Range<usize>) {
        if let Some(bytes) = self.bytes().get(part) {
            self.checkpoint.release_bytes(bytes);
        }
    }
}

/// A parameter's bytes that a checkpoint holds in another order: made when they are asked for.
struct Made {
    checkpoint: Arc<Checkpoint>,
    recipe: Recipe,
    bytes: OnceLock<Vec<u8>>,
}

impl Made {
    fn view(&self) -> Result<TensorView<'_>> {
        view(&self.checkpoint, &self.recipe)
    }
}

impl Owner for Made {
    fn bytes(&self) -> &[u8] {
        self.bytes.get_or_init(|| self.view().map(|view| view.data.into_owned()).unwrap_or_default())
    }

    fn release(&self) -> Option<Arc<dyn Owner>> {
        self.recipe.names().into_iter().for_each(|name| self.checkpoint.release(name));
        self.bytes.get()?;
        Some(Arc::new(Made { checkpoint: self.checkpoint.clone(), recipe: self.recipe.clone(), bytes: OnceLock::new() }))
    }
}

/// What a parameter is made of; `None` when it is in no checkpoint.
fn recipe<'a>(plan: &'a ModelPlan, param: &str) -> Option<&'a Recipe> {
    plan.bindings.iter().find(|b| b.param == param).map(|b| &b.source)
}

/// The first checkpoint tensor that a parameter is made of.
pub(crate) fn source_of<'a>(plan: &'a ModelPlan, param: &str) -> Option<&'a str> {
    recipe(plan, param).and_then(|recipe| recipe.names().first().copied())
}

/// A parameter as a checkpoint holds it.
fn view<'a>(checkpoint: &'a Checkpoint, recipe: &Recipe) -> Result<TensorView<'a>> {
    match recipe {
        Recipe::Whole(name) => Ok(checkpoint.tensor(name)?),
        Recipe::Transposed(name) => Ok(checkpoint.transposed(name)?),
        Recipe::Stacked(names) => Ok(checkpoint.stacked(names)?),
        Recipe::Rows(..) | Recipe::Columns(..) | Recipe::Joined(_) => Err(unsupported(recipe)),
    }
}

/// A tensor of the checkpoint in the parameter that was made of it.
struct Piece {
    name: String,
    shape: Vec<usize>,
    /// Those of the parameter.
    elements: Range<usize>,
    /// The parameter has its axes exchanged.
    turned: bool,
}

/// The checkpoint tensors that make up a parameter of this shape: [`view`] backwards.
fn pieces(recipe: &Recipe, shape: &[usize]) -> Result<Vec<Piece>> {
    let len = shape.iter().product();
    match (recipe, shape) {
        (Recipe::Transposed(name), &[rows, cols]) => {
            Ok(vec![Piece { name: name.clone(), shape: vec![cols, rows], elements: 0..len, turned: true }])
        }
        (Recipe::Whole(name) | Recipe::Transposed(name), _) => {
            Ok(vec![Piece { name: name.clone(), shape: shape.to_vec(), elements: 0..len, turned: false }])
        }
        (Recipe::Stacked(names), _) if shape.first() != Some(&names.len()) => {
            let message = format!("the model plugin stacks {} tensors into a parameter of shape {shape:?}", names.len());
            Err(ServeError::Request(message))
        }
        (Recipe::Stacked(names), _) => {
            let size = len / names.len().max(1);
            let part = |(i, name): (usize, &String)| Piece {
                name: name.clone(),
                shape: shape[1..].to_vec(),
                elements: i * size..(i + 1) * size,
                turned: false,
            };
            Ok(names.iter().enumerate().map(part).collect())
        }
        (Recipe::Rows(..) | Recipe::Columns(..) | Recipe::Joined(_), _) => Err(unsupported(recipe)),
    }
}

fn unsupported(recipe: &Recipe) -> ServeError {
    let message =
        format!("the model plugin makes a parameter by the recipe {recipe:?}; this host knows whole, transposed and stacked");
    ServeError::Request(message)
}

impl AdaptedModel {
    /// Puts every parameter into `store`: base weights in the checkpoint's own format without a copy, except those that are trained,
    /// which become f32, and those that [`AdaptedModel::quantize`] rounds; the adapter's from their declared distributions, keyed by (seed, name).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the plugin declares.
    pub fn load(&self, store: &mut Store, seed: u64) -> Result<()> {
        let trained = self.trained_base();
        for decl in &self.plan.params {
            match &decl.tied_to {
                Some(owner) => store.alias(&decl.name, owner)?,
                None => self.load_base(store, decl, trained.contains(&decl.name))?,
            }
        }
        for (decl, _) in self.adapter_params() {
            initialise(store, &decl, seed)?;
        }
        Ok(())
    }

    /// Fills every base parameter from its declared distribution instead of the checkpoint's tensors: the start of pretraining.
    ///
    /// # Errors
    /// When a distribution is not supported.
    pub fn load_fresh(&self, store: &mut Store, seed: u64) -> Result<()> {
        for decl in &self.plan.params {
            match &decl.tied_to {
                Some(owner) => store.alias(&decl.name, owner)?,
                None => initialise(store, decl, seed)?,
            }
        }
        for (decl, _) in self.adapter_params() {
            initialise(store, &decl, seed)?;
        }
        Ok(())
    }

    fn load_base(&self, store: &mut Store, decl: &ParamDecl, trained: bool) -> Result<()> {
        let Some(recipe) = recipe(&self.plan, &decl.name) else {
            return Err(ServeError::Request(format!("the model plugin binds `{}` to no tensor", decl.name)));
        };
        let view = view(&self.checkpoint, recipe)?;
        if !view.shape.iter().map(|&d| d as u64).eq(decl.shape.iter().copied()) {
            return Err(ServeError::WeightShape {
                param: decl.name.clone(),
                tensor: recipe.names().join("`, `"),
                want: decl.shape.clone(),
                got: view.shape.clone(),
            });
        }
        // Vectors (norms, biases) are read by f32 kernels; they are small.
        if trained || view.shape.len() < 2 {
            store.insert_f32(&decl.name, view.shape.clone(), floats(&view))?;
            return Ok(());
        }
        if self.is_rounded(&decl.name) {
            return self.insert_rounded(store, &decl.name, view.shape.clone(), &floats(&view));
        }
        let (checkpoint, recipe, range) = (self.checkpoint.clone(), recipe.clone(), 0..view.data.len());
        let owner: Arc<dyn Owner> = match view.data {
            Cow::Borrowed(_) => Arc::new(Mapped { checkpoint, recipe }),
            Cow::Owned(bytes) => Arc::new(Made { checkpoint, recipe, bytes: bytes.into() }),
        };
        store.insert_weight(&decl.name, storage(view.format), view.shape, Bytes::new(owner, range)?)?;
        Ok(())
    }

    /// Reads a PEFT adapter folder into the store.
    ///
    /// # Errors
    /// When names or shapes are not what the tuner expects, in either direction.
    pub fn load_adapter(&self, store: &mut Store, folder: &Path) -> Result<()> {
        let file = AdapterFile::read(folder)?;
        let mut by_name: HashMap<&str, &AdapterTensor> = file.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        for ExportEntry { param, name, transpose } in self.export_entries()?.0 {
            let tensor = by_name.remove(name.as_str()).ok_or_else(|| {
                ServeError::Adapter(format!(
                    "`{}` has no tensor `{name}`; is it another model's or another method's?",
                    folder.display()
                ))
            })?;
            let (shape, data) = oriented(tensor, transpose);
            let want = store.weight_info(&param)?.0.to_vec();
            if want != shape {
                return Err(ServeError::Adapter(format!("tensor `{name}` has shape {shape:?}, the method wants {want:?}")));
            }
            store.insert_f32(&param, shape, data)?;
        }
        if let Some(name) = by_name.keys().min() {
            return Err(ServeError::Adapter(format!("`{}` holds `{name}`, which this method does not know", folder.display())));
        }
        Ok(())
    }

    /// Writes the adapter in PEFT's layout. `base` is recorded as the base model's name.
    ///
    /// # Errors
    /// When the method has no such layout or the folder cannot be written.
    pub fn save_adapter(&self, store: &Store, folder: &Path, base: &str) -> Result<()> {
        let (entries, mut config) = self.export_entries()?;
        let mut tensors = Vec::with_capacity(entries.len());
        for ExportEntry { param, name, transpose } in entries {
            let HostTensor::F32 { shape, data } = store.read_f32(&param)? else {
                return Err(ServeError::Adapter(format!("parameter `{param}` is not a float tensor")));
            };
            let tensor = AdapterTensor { name: name.clone(), shape, data };
            let (shape, data) = oriented(&tensor, transpose);
            tensors.push(AdapterTensor { name, shape, data });
        }
        config["base_model_name_or_path"] = base.into();
        AdapterFile { config, tensors }.write(folder)?;
        Ok(())
    }

    /// File name of every adapter tensor, and the adapter's configuration.
    fn export_entries(&self) -> Result<(Vec<ExportEntry>, serde_json::Value)> {
        let known: HashSet<String> = self.adapter_params().into_iter().map(|(p, _)| p.name).collect();
        let plan = self.adapter.as_ref().and_then(|a| a.export.as_ref());
        let plan = plan.ok_or_else(|| ServeError::Adapter("the model has no adapter".into()))?;
        let config = serde_json::from_str(&plan.config_json)
            .map_err(|e| ServeError::Adapter(format!("the tuner's export configuration is not JSON: {e}")))?;
        let mut entries = Vec::new();
        for e in plan.entries.iter().cloned() {
            if !known.contains(&e.param) {
                return Err(ServeError::Adapter(format!("the tuner exports `{}`, which is no parameter of its plan", e.param)));
            }
            entries.push(e);
        }
        Ok((entries, config))
    }
}

fn oriented(tensor: &AdapterTensor, transpose: bool) -> (Vec<usize>, Vec<f32>) {
    if transpose { self::transpose(&tensor.shape, &tensor.data) } else { (tensor.shape.clone(), tensor.data.clone()) }
}

/// A matrix with its axes exchanged; anything else as it is.
fn transpose(shape: &[usize], data: &[f32]) -> (Vec<usize>, Vec<f32>) {
    match shape {
        &[rows, cols] => {
            let at = |i: usize| data[(i % rows) * cols + i / rows];
            (vec![cols, rows], (0..rows * cols).map(at).collect())
        }
        _ => (shape.to_vec(), data.to_vec()),
    }
}

fn initialise(store: &mut Store, decl: &ParamDecl, seed: u64) -> Result<()> {
    let shape: Vec<usize> = decl.shape.iter().map(|&d| d as usize).collect();
    let distribution = match &decl.init {
        Init::Zeros => Distribution::Zeros,
        Init::Ones => Distribution::Ones,
        Init::Constant(c) => Distribution::Constant(*c),
        Init::Normal(std) => Distribution::Normal(*std),
        Init::Uniform(bound) => Distribution::Uniform(*bound),
        Init::KaimingUniform(a) => Distribution::KaimingUniform(*a),
        Init::Orthogonal(gain) => Distribution::Orthogonal(*gain),
        Init::CopyOf(other) => {
            let HostTensor::F32 { shape: found, data } = store.read_f32(other)? else {
                return Err(ServeError::Request(format!("`{other}`, which `{}` copies, is not a float tensor", decl.name)));
            };
            if found != shape {
                return Err(ServeError::Request(format!("`{}` copies `{other}`, which has another shape", decl.name)));
            }
            store.insert_f32(&decl.name, shape, data)?;
            return Ok(());
        }
    };
    let values = random::init(distribution, seed, &decl.name, &shape)?;
    store.insert_f32(&decl.name, shape, values)?;
    Ok(())
}

/// The device's name of a file's format.
fn storage(format: Format) -> swift_runtime::Format {
    use swift_runtime::Format as Device;
    match format {
        Format::F32 => Device::F32,
        Format::F16 => Device::F16,
        Format::BF16 => Device::BF16,
        Format::Q8_0 => Device::Q8_0,
        Format::Q4_0 => Device::Q4_0,
        Format::Q4_1 => Device::Q4_1,
        Format::Q5_0 => Device::Q5_0,
        Format::Q5_1 => Device::Q5_1,
        Format::Iq4Nl => Device::Iq4Nl,
        Format::Q2K => Device::Q2K,
        Format::Q3K => Device::Q3K,
        Format::Q4K => Device::Q4K,
        Format::Q5K => Device::Q5K,
        Format::Q6K => Device::Q6K,
        Format::Nf4 => Device::Nf4,
    }
}

/// The values of a tensor, decoded.
fn floats(view: &TensorView<'_>) -> Vec<f32> {
    swift_runtime::decode(storage(view.format), &view.data)
}

impl AdaptedModel {
    /// Writes the whole model in the Hugging Face layout: `config.json` and `model.safetensors`, f32.
    ///
    /// # Errors
    /// When a parameter cannot be read or the folder not be written.
    pub fn save_full(&self, store: &Store, folder: &Path) -> Result<()> {
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write_safetensors_late(&folder.join("model.safetensors"), &self.late_tensors(store)?, &[], &metadata)?;
        let mut config = self.config().clone();
        config["dtype"] = "float32".into();
        write_file(&folder.join("config.json"), |out| {
            serde_json::to_writer_pretty(&mut *out, &config)?;
            out.write_all(b"\n")
        })?;
        Ok(())
    }

    /// Every base parameter as the checkpoint's tensors, tied ones once.
    ///
    /// # Errors
    /// When a parameter is not in the store.
    pub fn tensors(&self, store: &Store) -> Result<Vec<WeightTensor>> {
        let tensors = self.late_tensors(store)?.into_iter();
        Ok(tensors.map(|LateTensor { name, shape, values }| WeightTensor { name, shape, data: values().into_owned() }).collect())
    }

    /// [`AdaptedModel::tensors`], each read when it is asked for.
    fn late_tensors<'s>(&self, store: &'s Store) -> Result<Vec<LateTensor<'s>>> {
        let mut tensors = Vec::with_capacity(self.plan.params.len());
        for decl in self.plan.params.iter().filter(|d| d.tied_to.is_none()) {
            let (shape, _) = store.weight_info(&decl.name)?;
            let whole = Recipe::Whole(decl.name.clone());
            for Piece { name, shape, elements, turned } in pieces(recipe(&self.plan, &decl.name).unwrap_or(&whole), shape)? {
                let param = decl.name.clone();
                let sizes = shape.clone();
                let values = move || {
                    let data =
                        store.read_part(&param, elements.clone()).expect("the parameter is in the store, which is borrowed");
                    if turned { transpose(&[sizes[1], sizes[0]], &data).1.into() } else { data }
                };
                tensors.push(LateTensor { name, shape, values: Box::new(values) });
            }
        }
        Ok(tensors)
    }

    /// Replaces every adapted weight in the store by its merged value and drops the adapter. Returns how many were merged.
    ///
    /// # Errors
    /// When the method has no weight form or the device fails.
    pub fn merge(&mut self, device: &dyn Device, store: &mut Store) -> Result<usize> {
        let mut program = crate::compile(device, store, self.merge_graph()?)?;
        let outputs = program.run(store, &Bindings::new(), &Inputs::new())?;
        let mut merged = 0;
        for (name, value) in outputs.iter() {
            store.insert_f32(name, value.shape().to_vec(), value.floats()?.to_vec())?;
            merged += 1;
        }
        self.adapter = None;
        Ok(merged)
    }

    /// Reads the trained base parameters back from such a folder.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_full(&self, store: &mut Store, folder: &Path) -> Result<()> {
        let source = Checkpoint::open(folder)?;
        for name in self.trained_base() {
            let whole = Recipe::Whole(name.clone());
            let view = view(&source, recipe(&self.plan, &name).unwrap_or(&whole))?;
            store.insert_f32(&name, view.shape.clone(), floats(&view))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_where_the_recipe_put_them() {
        let names = vec!["a".to_string(), "b".to_string()];
        let stacked = pieces(&Recipe::Stacked(names.clone()), &[2, 3, 4]).unwrap();
        assert_eq!(
            stacked.iter().map(|p| (p.name.as_str(), p.elements.clone())).collect::<Vec<_>>(),
            [("a", 0..12), ("b", 12..24)]
        );
        assert!(stacked.iter().all(|p| p.shape == [3, 4] && !p.turned));
        let turned = pieces(&Recipe::Transposed("a".into()), &[2, 3]).unwrap();
        assert!(turned[0].turned && turned[0].shape == [3, 2] && turned[0].elements == (0..6));
        // A plugin may say anything.
        for shape in [&[3, 4][..], &[]] {
            let error = pieces(&Recipe::Stacked(names.clone()), shape).err().expect("refused").to_string();
            assert!(error.contains("stacks 2 tensors"), "{error}");
        }
    }
}
