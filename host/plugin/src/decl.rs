//! What plugins declare and what the host tells them, in the host's own types. Conversions from and to the WIT's types are here too, so
//! that the rest of the workspace never sees generated code.

use std::fmt;

use swift_graph::{DType, Graph, NodeId, ParamId, StateId};

use crate::bindings::{guest, host, tensor};

/// What a component can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A model architecture.
    Model,
    /// Rows to samples.
    Dataset,
    /// A fine-tuning method.
    Peft,
    /// A loss.
    Loss,
    /// An optimizer.
    Optimizer,
    /// A reward rule. Declared in the WIT; this version does not run it.
    Reward,
    /// A transform of logits, a matcher that says which tokens may come, or both.
    Sampler,
    /// A metric. Declared in the WIT; this version does not run it.
    Metric,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 8] =
        [Kind::Model, Kind::Dataset, Kind::Peft, Kind::Loss, Kind::Optimizer, Kind::Reward, Kind::Sampler, Kind::Metric];

    /// Name of the interface in `swift:plugin`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
            Kind::Peft => "peft",
            Kind::Loss => "loss",
            Kind::Optimizer => "optimizer",
            Kind::Reward => "reward",
            Kind::Sampler => "sampler",
            Kind::Metric => "metric",
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.name() == name)
    }

    /// Whether it traces graphs, and so may import the tensor interfaces.
    pub fn traces(self) -> bool {
        !matches!(self, Kind::Dataset | Kind::Reward)
    }

    /// Whether this version of the host runs it.
    pub fn hosted(self) -> bool {
        !matches!(self, Kind::Reward | Kind::Metric)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that a component provides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// What users type.
    pub id: String,
    /// One sentence.
    pub summary: String,
    /// JSON Schema of its configuration; may be empty.
    pub config_schema: String,
}

/// What a component says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// License.
    pub license: String,
    /// What it provides.
    pub items: Vec<Item>,
}

/// Start of a parameter, drawn from (seed, name).
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// 0.
    Zeros,
    /// 1.
    Ones,
    /// One number.
    Constant(f32),
    /// Normal with this standard deviation.
    Normal(f32),
    /// Uniform in ±bound.
    Uniform(f32),
    /// Uniform in ±sqrt(6 / ((1 + a²)·fan-in)).
    KaimingUniform(f32),
    /// Orthogonal with this gain.
    Orthogonal(f32),
    /// A copy of another parameter.
    CopyOf(String),
}

/// A parameter that a plugin declares.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamDecl {
    /// Unique name.
    pub name: String,
    /// Sizes.
    pub shape: Vec<u64>,
    /// Start.
    pub init: Init,
    /// Another parameter whose storage it shares.
    pub tied_to: Option<String>,
    /// Free words for optimizers and tuners.
    pub tags: Vec<String>,
}

/// A parameter as optimizers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Name.
    pub name: String,
    /// Sizes.
    pub shape: Vec<u64>,
    /// Tags of its declaration.
    pub tags: Vec<String>,
}

/// What a model is traced for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Packed sequences, gradients follow.
    Train,
    /// Prompt into the cache.
    Prefill,
    /// Next tokens from the cache.
    Decode,
    /// Packed sequences, no gradients.
    Encode,
}

/// The output projection as losses see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Final hidden states `[n, d]`.
    pub hidden: NodeId,
    /// Weight `[vocab, d]`: a parameter node or a dense value.
    pub weight: NodeId,
    /// `cap·tanh(logit/cap)` where set.
    pub softcap: Option<f32>,
}

/// Kind of a call site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SiteKind {
    /// `y = x·Wᵀ + b`.
    Linear,
    /// One matrix per expert.
    GroupedLinear,
    /// Table lookup.
    Embedding,
    /// Convolution.
    Conv,
    /// Norm weight.
    Norm,
    /// Learned keys and values.
    KvPrefix,
    /// Output projection.
    Head,
    /// Anything else.
    Other,
}

/// A call site as tuners see it.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteInfo {
    /// Unique number.
    pub id: u32,
    /// Module path.
    pub path: String,
    /// Kind.
    pub kind: SiteKind,
    /// Input width.
    pub d_in: u64,
    /// Output width.
    pub d_out: u64,
    /// Number of experts, or 0.
    pub experts: u32,
    /// Layer number, if the path has one.
    pub layer: Option<u32>,
    /// Whether the weight is stored quantized.
    pub quantised: bool,
}

/// The first number between dots of a module path.
pub fn layer_of(path: &str) -> Option<u32> {
    path.split('.').find_map(|part| part.parse().ok())
}

/// One site for [`crate::TunerGuest`]'s tracing calls.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteBinding {
    /// As given to `plan`.
    pub info: SiteInfo,
    /// Input value.
    pub x: NodeId,
    /// Weight: a parameter node or a dense value.
    pub weight: NodeId,
    /// Bias: likewise.
    pub bias: Option<NodeId>,
    /// The plan's parameters of this site by declared name.
    pub params: Vec<(String, ParamId)>,
    /// The plan's common parameters by declared name.
    pub common: Vec<(String, ParamId)>,
    /// Whether dropout drops; otherwise it is the identity.
    pub training: bool,
}

/// One mini-batch for [`crate::LossGuest::trace`].
#[derive(Clone, Debug, PartialEq)]
pub struct BatchBinding {
    /// The model being trained.
    pub policy: Head,
    /// The model it is compared with.
    pub reference: Option<Head>,
    /// The model it learns from.
    pub teacher: Option<Head>,
    /// Per-token, per-sequence or per-pair values by name.
    pub fields: Vec<(String, NodeId)>,
    /// Scalars over the whole step by name.
    pub totals: Vec<(String, NodeId)>,
}

/// One parameter's update for [`crate::OptimizerGuest::trace`].
#[derive(Clone, Debug, PartialEq)]
pub struct StepBinding {
    /// The parameter.
    pub info: ParamInfo,
    /// Its gradient.
    pub grad: NodeId,
    /// Its value: a parameter node or a dense value.
    pub weight: NodeId,
    /// Slots of the plan by name.
    pub slots: Vec<(String, StateId)>,
    /// Runtime scalars by name.
    pub scalars: Vec<(String, NodeId)>,
}

impl From<host::decl::Init> for Init {
    fn from(init: host::decl::Init) -> Init {
        use host::decl::Init as W;
        match init {
            W::Zeros => Init::Zeros,
            W::Ones => Init::Ones,
            W::Constant(v) => Init::Constant(v),
            W::Normal(v) => Init::Normal(v),
            W::Uniform(v) => Init::Uniform(v),
            W::KaimingUniform(v) => Init::KaimingUniform(v),
            W::Orthogonal(v) => Init::Orthogonal(v),
            W::CopyOf(name) => Init::CopyOf(name),
        }
    }
}

impl From<host::decl::ParamDecl> for ParamDecl {
    fn from(d: host::decl::ParamDecl) -> ParamDecl {
        ParamDecl { name: d.name, shape: d.shape, init: d.init.into(), tied_to: d.tied_to, tags: d.tags }
    }
}

impl From<&ParamInfo> for host::decl::ParamInfo {
    fn from(p: &ParamInfo) -> host::decl::ParamInfo {
        host::decl::ParamInfo { name: p.name.clone(), shape: p.shape.clone(), tags: p.tags.clone() }
    }
}

impl From<&SiteInfo> for host::decl::SiteInfo {
    fn from(s: &SiteInfo) -> host::decl::SiteInfo {
        use host::decl::SiteKind as W;
        host::decl::SiteInfo {
            id: s.id,
            path: s.path.clone(),
            kind: match s.kind {
                SiteKind::Linear => W::Linear,
                SiteKind::GroupedLinear => W::GroupedLinear,
                SiteKind::Embedding => W::Embedding,
                SiteKind::Conv => W::Conv,
                SiteKind::Norm => W::Norm,
                SiteKind::KvPrefix => W::KvPrefix,
                SiteKind::Head => W::Head,
                SiteKind::Other => W::Other,
            },
            d_in: s.d_in,
            d_out: s.d_out,
            experts: s.experts,
            layer: s.layer,
            quantised: s.quantised,
        }
    }
}

impl From<Mode> for host::decl::Mode {
    fn from(mode: Mode) -> host::decl::Mode {
        match mode {
            Mode::Train => host::decl::Mode::Train,
            Mode::Prefill => host::decl::Mode::Prefill,
            Mode::Decode => host::decl::Mode::Decode,
            Mode::Encode => host::decl::Mode::Encode,
        }
    }
}

pub(crate) fn dtype_in(dtype: tensor::types::Dtype) -> DType {
    use tensor::types::Dtype as W;
    match dtype {
        W::Boolean => DType::Bool,
        W::U8 => DType::U8,
        W::S8 => DType::S8,
        W::S16 => DType::S16,
        W::S32 => DType::S32,
        W::S64 => DType::S64,
        W::U32 => DType::U32,
        W::F8e4m3 => DType::F8E4M3,
        W::F8e5m2 => DType::F8E5M2,
        W::F16 => DType::F16,
        W::Bf16 => DType::BF16,
        W::F32 => DType::F32,
        W::F64 => DType::F64,
    }
}

pub(crate) fn dtype_out(dtype: DType) -> tensor::types::Dtype {
    use tensor::types::Dtype as W;
    match dtype {
        DType::Bool => W::Boolean,
        DType::U8 => W::U8,
        DType::S8 => W::S8,
        DType::S16 => W::S16,
        DType::S32 => W::S32,
        DType::S64 => W::S64,
        DType::U32 => W::U32,
        DType::F8E4M3 => W::F8e4m3,
        DType::F8E5M2 => W::F8e5m2,
        DType::F16 => W::F16,
        DType::BF16 => W::Bf16,
        DType::F32 => W::F32,
        DType::F64 => W::F64,
    }
}

pub(crate) fn code_name(code: tensor::types::ErrorCode) -> &'static str {
    use tensor::types::ErrorCode as W;
    match code {
        W::BadShape => "bad-shape",
        W::BadDtype => "bad-dtype",
        W::BadConfig => "bad-config",
        W::UnsupportedOp => "unsupported-op",
        W::Limit => "limit",
        W::Denied => "denied",
        W::Missing => "missing",
        W::Internal => "internal",
        W::Other => "other",
    }
}

/// Reads a site's dense weight: a parameter node through a `Read`, a computed value as it is.
pub(crate) fn dense(g: &mut Graph, node: NodeId) -> swift_graph::Result<NodeId> {
    if matches!(g.node(node).op, swift_graph::Op::Param(_)) { g.push(swift_graph::op::Read, &[node]) } else { Ok(node) }
}

pub(crate) use guest::about::Info as WitInfo;
