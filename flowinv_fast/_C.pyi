"""Types of the compiled module, for flowinv_fast.ops: sizes, tensors by address, a place."""

Tensor = tuple[int, int, int]  # address, number of elements, dtype code
Place = tuple[int, int, int]  # CUDA device or -1, CPU threads, CUDA stream
Shape = tuple[int, int, int, int]  # batch, channels, height, width
Strides = tuple[int, int]  # between images, between elements

build_info: dict[str, str]

PRECISIONS: dict[str, int]

class FrozenFlow:
    saved_bytes: int
    weight_bytes: int
    workspace: int
    words: int
    state: tuple[int, int, int]
    def __init__(self, shape: tuple[int, int, int], precision: int, on_device: bool, /) -> None: ...
    def add_standardise(self, mean: Tensor, std: Tensor, /) -> None: ...
    def add_squeeze(self) -> None: ...
    def add_factor_out(self) -> None: ...
    def add_mixing(self, weight: Tensor, log_size_sum: float, /) -> None: ...
    def add_coupling(
        self,
        mask: int,
        inverse: bool,
        gain: Tensor,
        convs: list[tuple[Tensor, Tensor, int, int]],
        /,
    ) -> None: ...
    def finish(self) -> None: ...
    def copy_words(self, out: Tensor, /) -> None: ...
    def forward(
        self,
        decode: bool,
        batch: int,
        in_: Tensor,
        out: Tensor,
        logdet: Tensor,
        saved: Tensor,
        words: Tensor,
        workspace: Tensor,
        place: Place,
        /,
    ) -> None: ...
    def backward(
        self,
        decode: bool,
        batch: int,
        grad_out: Tensor,
        grad_logdet: Tensor,
        saved: Tensor,
        grad_in: Tensor,
        words: Tensor,
        workspace: Tensor,
        place: Place,
        /,
    ) -> None: ...

def cpu_bf16() -> bool: ...
def adam_step(
    batch: int,
    n: int,
    x: Tensor,
    grad: Tensor,
    avg: Tensor,
    avg_sq: Tensor,
    best: Tensor,
    loss: Tensor,
    best_loss: Tensor,
    active: Tensor,
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    place: Place,
    /,
) -> None: ...
def affine_coupling(
    decode: bool,
    mask: int,
    shape: Shape,
    in_stride: int,
    in_: Tensor,
    raw: Tensor,
    gain: Tensor,
    logdet_in: Tensor,
    out: Tensor,
    logdet_out: Tensor,
    partials: Tensor,
    place: Place,
    /,
) -> None: ...
def affine_coupling_backward(
    decode: bool,
    mask: int,
    shape: Shape,
    grad_out: Tensor,
    grad_logdet: Tensor,
    value: Tensor,
    raw: Tensor,
    gain: Tensor,
    grad_in: Tensor,
    grad_raw: Tensor,
    grad_gain: Tensor,
    partials: Tensor,
    place: Place,
    /,
) -> None: ...
def dequantise(
    n: int, levels: int, seed: int, offset: int, in_: Tensor, out: Tensor, place: Place, /
) -> None: ...
def digit_overlay(
    batch: int,
    count: int,
    bank_size: int,
    patch_height: int,
    patch_width: int,
    channels: int,
    height: int,
    width: int,
    seed: int,
    offset: int,
    bank: Tensor,
    index: Tensor,
    places: Tensor,
    out: Tensor,
    place: Place,
    /,
) -> None: ...
def gaussian_log_prob(
    batch: int,
    n: int,
    y: Tensor,
    fx: Tensor,
    mean: Tensor,
    mean_strides: Strides,
    sd: Tensor,
    sd_strides: Strides,
    score: Tensor,
    log_prob: Tensor,
    partials: Tensor,
    place: Place,
    /,
) -> None: ...
def gaussian_noise(
    batch: int,
    n: int,
    seed: int,
    offset: int,
    mean: Tensor,
    mean_strides: Strides,
    sd: Tensor,
    sd_strides: Strides,
    out: Tensor,
    place: Place,
    /,
) -> None: ...
def logit(
    decode: bool,
    batch: int,
    n: int,
    alpha: float,
    in_: Tensor,
    logdet_in: Tensor,
    out: Tensor,
    logdet_out: Tensor,
    partials: Tensor,
    place: Place,
    /,
) -> None: ...
def logit_backward(
    decode: bool,
    batch: int,
    n: int,
    alpha: float,
    grad_out: Tensor,
    grad_logdet: Tensor,
    in_: Tensor,
    grad_in: Tensor,
    place: Place,
    /,
) -> None: ...
def patches(
    scatter: bool,
    batch: int,
    count: int,
    patch_height: int,
    patch_width: int,
    channels: int,
    height: int,
    width: int,
    in_: Tensor,
    places: Tensor,
    out: Tensor,
    place: Place,
    /,
) -> None: ...
def quantise(
    n: int, bits: int, low: float, high: float, in_: Tensor, out: Tensor, place: Place, /
) -> None: ...
def random_bits(n: int, seed: int, offset: int, out: Tensor, place: Place, /) -> None: ...
def squeeze(
    to_squeezed: bool,
    batch: int,
    channels: int,
    height: int,
    width: int,
    in_stride: int,
    in_: Tensor,
    out: Tensor,
    place: Place,
    /,
) -> None: ...
def standard_normal_log_prob(
    batch: int, n: int, z: Tensor, log_prob: Tensor, partials: Tensor, place: Place, /
) -> None: ...
def structured_noise(
    map_only: bool,
    batch: int,
    channels: int,
    height: int,
    width: int,
    kind: int,
    rate: float,
    floor: float,
    ceiling: float,
    seed: int,
    offset: int,
    mean: Tensor,
    level: Tensor,
    out: Tensor,
    place: Place,
    /,
) -> None: ...
