//! The CPU: one file per op family, named as the graph's, says how its ops are launched.
//!
//! ```text
//! compile   Plan -> constants, base tables                                   (once)
//! prepare   launches x bindings -> kernels with sizes and operands, layout   (once for each binding, cached)
//! run       bases to pointers, then one call after the other                 (every run)
//! ```

mod adam;
mod attention;
mod bind;
mod conv;
mod cross_entropy;
mod distribution;
mod dropout;
mod dynamic8;
mod elementwise;
mod embed;
mod executable;
mod fused;
mod gather;
mod glu;
mod grouped_linear;
mod identity;
mod layout;
mod leaf;
mod linear;
mod low_rank;
mod matmul;
mod memory;
mod norm;
mod prepare;
mod reduce;
mod rope;
mod top_k;

use std::sync::{Arc, Mutex, PoisonError};

use swift_graph::Op;
use swift_graph::plan::Plan;
use swift_kernels::ceiling::Ceilings;
use swift_kernels::gemm::SCRATCH_BYTES;
use swift_kernels::isa::Isa;
use swift_kernels::pool::Pool;

use crate::buffer::Buffer;
use crate::{Device, DeviceInfo, Error, Executable, Result, Store};
pub(crate) use attention::cache_words;
use memory::Memory;
use prepare::Prepare;

/// How to use the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads of kernels, the caller's included; 0 takes all that the system offers.
    pub threads: usize,
    /// Instruction set of kernels; without one, the best there is.
    pub isa: Option<Isa>,
}

/// The processor as a device.
pub struct CpuDevice {
    shared: Arc<Shared>,
}

/// What the device and its executables share.
struct Shared {
    pool: Pool,
    /// One run at a time uses it.
    arena: Mutex<Buffer>,
}

impl CpuDevice {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the processor lacks the instruction set asked for.
    pub fn new(options: CpuOptions) -> Result<CpuDevice> {
        let best = Isa::detect();
        let isa = options.isa.unwrap_or(best);
        if isa > best {
            return Err(Error::Device(format!("this processor does not support {isa}; its best is {best}")));
        }
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let arena = Mutex::new(Buffer::zeroed(0, "the arena")?);
        Ok(CpuDevice { shared: Arc::new(Shared { pool: Pool::with_isa(threads, isa), arena }) })
    }

    /// The threads that kernels run on.
    pub(crate) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// Measures what the processor can do at most, on the device's threads: about two seconds and half a gigabyte.
    pub fn ceilings(&self) -> Ceilings {
        Ceilings::measure(&self.shared.pool)
    }
}

impl Device for CpuDevice {
    fn describe(&self) -> DeviceInfo {
        let pool = &self.shared.pool;
        // Linux tells; elsewhere the names stay generic.
        let first = |path: &str, key: &str| {
            let text = std::fs::read_to_string(path).ok()?;
            let line = text.lines().find(|line| line.starts_with(key))?;
            line.split_once(':').map(|(_, value)| value.trim().to_string())
        };
        let bytes = |key| first("/proc/meminfo", key)?.strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10);
        DeviceInfo {
            name: first("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            threads: pool.threads(),
            isa: pool.isa().to_string(),
            memory_total: bytes("MemTotal"),
            memory_available: bytes("MemAvailable"),
        }
    }

    fn compile(&self, plan: Plan) -> Result<Box<dyn Executable>> {
        Ok(Box::new(executable::CpuExecutable::new(Arc::clone(&self.shared), plan)?))
    }

    fn store(&self) -> Store {
        Store::new()
    }

    fn working_bytes(&self) -> usize {
        self.shared.pool.threads() * SCRATCH_BYTES
    }

    fn arena_bytes(&self) -> usize {
        self.shared.arena.lock().unwrap_or_else(PoisonError::into_inner).bytes()
    }
}

macro_rules! kernels {
    ($($name:ident($kernel:ty)),* $(,)?) => {
        /// A prepared launch.
        #[derive(Debug)]
        enum Kernel {
            $($name($kernel),)*
        }

        impl Kernel {
            fn run(&self, m: &Memory<'_>) -> Result<()> {
                match self { $(Kernel::$name(kernel) => kernel.run(m),)* }
            }
        }
    };
}

kernels! {
    Elementwise(elementwise::Elementwise),
    Copies(layout::Copies),
    Fill(leaf::Fill),
    Count(leaf::Count),
    Move(identity::Move),
    Dequantize(identity::Dequantize),
    Reduction(reduce::Reduction),
    Softmax(reduce::Softmax),
    Segments(reduce::Segments),
    Gather(gather::Gather),
    Scatter(gather::Scatter),
    TopK(top_k::TopK),
    ByIndex(top_k::ByIndex),
    Product(matmul::Product),
    Linear(linear::Linear),
    Linears(linear::Linears),
    WeightGradient(linear::WeightGradient),
    LowRank(low_rank::LowRankProduct),
    GroupedLinear(grouped_linear::Forward),
    GroupedGradient(grouped_linear::Gradient),
    GroupedWeightGradient(grouped_linear::WeightGradient),
    Conv(conv::Conv),
    ConvGradient(conv::ConvGradient),
    Embed(embed::Embed),
    EmbedGradient(embed::EmbedGradient),
    Norm(norm::Norm),
    NormDx(norm::NormDx),
    NormDw(norm::NormDw),
    Rotation(rope::Rotation),
    Attention(attention::Attention),
    AttentionGradient(attention::AttentionGradient),
    CacheAttention(attention::CacheAttention),
    Glu(glu::Glu),
    GluGradient(glu::GluGradient),
    CrossEntropy(cross_entropy::CrossEntropy),
    CrossEntropyGradient(cross_entropy::CrossEntropyGradient),
    Statistic(distribution::Statistic),
    StatisticGradient(distribution::StatisticGradient),
    Divergence(distribution::Divergence),
    DivergenceGradient(distribution::DivergenceGradient),
    Dropout(dropout::Dropout),
    Adam(adam::Adam),
    Unpack(dynamic8::Unpack),
    Pack(dynamic8::Pack),
}

/// The kernel of a launch. No wildcard: a new op does not compile until it has one.
fn prepare_launch(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    match &p.node.op {
        Op::State(op) => dynamic8::read(op.id, p),
        Op::Input(_) | Op::Param(_) | Op::Constant(_) | Op::Part(_) => {
            Err(p.scope.broken(p.launch.node, "it computes nothing that could be launched"))
        }
        Op::Full(op) => leaf::full(op, p),
        Op::Iota(op) => leaf::iota(op, p),
        Op::Read(_) => identity::read(p),
        Op::StopGrad(_) | Op::Reshape(_) => identity::prepare(p),
        Op::Unary(op) => elementwise::unary(op.0, p),
        Op::Binary(op) => elementwise::binary(op.0, p),
        Op::Select(_) => elementwise::select(p),
        Op::Cast(op) => elementwise::cast(op, p),
        Op::Fused(op) => fused::prepare(op, p),
        Op::Permute(op) => layout::permute(op, p),
        Op::Expand(op) => layout::expand(op, p),
        Op::Slice(op) => layout::slice(op, p),
        Op::Concat(op) => layout::concat(op, p),
        Op::Pad(op) => layout::pad(op, p),
        Op::Reduce(op) => reduce::prepare(op, p),
        Op::Softmax(_) => reduce::softmax(false, p),
        Op::SoftmaxDx(_) => reduce::softmax(true, p),
        Op::SegmentReduce(op) => reduce::segment_reduce(op, p),
        Op::GatherRows(_) => gather::gather(p),
        Op::ScatterRows(op) => gather::scatter(op, p),
        Op::TopK(op) => top_k::top_k(op, p),
        Op::GatherLast(_) => top_k::gather(p),
        Op::ScatterLast(_) => top_k::scatter(p),
        Op::MatMul(op) => matmul::prepare(op, p),
        Op::Linear(op) => linear::forward(op, p),
        Op::LinearDx(op) => linear::dx(op, p),
        Op::LinearDw(op) => linear::dw(op, p),
        Op::LowRankLinear(op) => low_rank::prepare(op, p),
        Op::GroupedLinear(_) => grouped_linear::forward(p),
        Op::GroupedLinearDx(_) => grouped_linear::dx(p),
        Op::GroupedLinearDw(_) => grouped_linear::dw(p),
        Op::Conv(op) => conv::forward(op, p),
        Op::ConvDx(op) => conv::dx(op, p),
        Op::ConvDw(op) => conv::dw(op, p),
        Op::Embed(_) => embed::forward(p),
        Op::EmbedDw(_) => embed::dw(p),
        Op::RmsNorm(op) => norm::forward(op, p),
        Op::RmsNormDx(op) => norm::dx(op, p),
        Op::RmsNormDw(_) => norm::dw(p),
        Op::Rope(op) => rope::prepare(op, p),
        Op::Attention(op) => attention::forward(&op.spec, p),
        Op::AttentionBackward(op) => attention::backward(&op.spec, p),
        Op::CachedAttention(op) => attention::cached(op, p),
        Op::Glu(op) => glu::forward(op, p),
        Op::GluBackward(op) => glu::backward(op, p),
        Op::LinearCrossEntropy(op) => cross_entropy::forward(op, p),
        Op::LinearCrossEntropyBackward(op) => cross_entropy::backward(op, p),
        Op::LinearStatistic(op) => distribution::statistic(op, p),
        Op::LinearStatisticBackward(op) => distribution::statistic_backward(op, p),
        Op::LinearDivergence(op) => distribution::divergence(op, p),
        Op::LinearDivergenceBackward(op) => distribution::divergence_backward(op, p),
        Op::Dropout(op) => dropout::prepare(op, p),
        Op::Adam(op) => adam::prepare(op, p),
    }
}
