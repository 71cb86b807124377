// A device that computes on the host and refuses what a GPU refuses: tensors of two devices in one operation, a host's
// generator, NumPy's view of its memory, and, on request, whatever would wait for a real one. It holds the code that runs
// on GPUs to these rules where there is none. pretend_device.py compiles it.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/view_cpu_dispatch.h>
#include <ATen/ops/unfold_cpu_dispatch.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <set>
#include <string>

namespace {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;
thread_local bool inside = false; // moving arguments for an operation, which a real device would not do
std::atomic<int64_t> waits{0};
std::atomic<bool> refuse{false};
std::atomic<bool> single{false}; // no float64, as on Apple's GPUs

void wait_for_device(const char *what) {
  waits++;
  TORCH_CHECK(!refuse, what, " waits for the device");
}

c10::ScalarType known(c10::ScalarType dtype) {
  TORCH_CHECK_TYPE(!single || dtype != c10::kDouble, "Cannot convert a tensor to float64: the device doesn't support it");
  return dtype;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    auto ptr = c10::GetCPUAllocator()->allocate(n);
    auto deleter = ptr.get_deleter();
    void *data = ptr.get(), *context = ptr.release_context();
    return {data, context, deleter, c10::Device(kDevice, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return c10::GetCPUAllocator()->raw_deleter(); }
  void copy_data(void *to, const void *from, size_t n) const override { std::memcpy(to, from, n); }
};
Allocator allocator;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return {kDevice, 0}; }
  c10::Device getDevice() const override { return {kDevice, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void **, const c10::Stream &, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void *, const c10::Stream &) const override {}
  bool queryEvent(void *) const override { return true; }
  bool queryStream(const c10::Stream &) const override { return true; }
  void synchronizeStream(const c10::Stream &) const override {}
  void synchronizeEvent(void *) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, c10::Device(kDevice, 0)); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Numbers of a CPU generator; only tensors of this device may draw them.
struct Generator final : c10::GeneratorImpl {
  at::Generator host;
  explicit Generator(at::Generator host_)
      : c10::GeneratorImpl(c10::Device(kDevice, 0), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), host(std::move(host_)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "no offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "no offset"); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl &state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  Generator *clone_impl() const override { return new Generator(host.clone()); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator &getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator found = at::make_generator<Generator>(at::detail::createCPUGenerator(0));
    return found;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>(at::detail::createCPUGenerator());
  }
};
Hooks hooks;

c10::DispatchKeySet keys() { return c10::DispatchKeySet(c10::DispatchKey::PrivateUse1); }

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, keys(), known(c10::dtype_or_default(dtype)), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, keys(), known(c10::dtype_or_default(dtype)));
}

// The same memory as a tensor of the host.
at::Tensor host(const at::Tensor &x) {
  if (x.device().is_cpu())
    return x;
  auto storage = x.storage();
  const auto bytes = x.numel() ? at::detail::computeStorageNbytes(x.sizes(), x.strides(), x.itemsize()) : 0;
  auto start = static_cast<char *>(storage.mutable_data()) + x.storage_offset() * x.itemsize();
  auto held = at::Storage(c10::Storage::use_byte_size_t(), bytes, c10::DataPtr(start, c10::Device(c10::kCPU)), nullptr, false);
  auto found = at::detail::empty_cpu({0}, x.scalar_type());
  at::Tensor t(found);
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(held);
  t.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides());
  t._set_conj(x.is_conj());
  t._set_neg(x.is_neg());
  return t;
}

at::Tensor copy_from(const at::Tensor &from, const at::Tensor &to, bool non_blocking) {
  if (!inside && from.device() != to.device()) {
    if (to.device().is_cpu() && !non_blocking)
      wait_for_device("a copy to the host");
    if (from.device().is_cpu() && !non_blocking && from.numel() > 0)
      wait_for_device("a copy from pageable memory of the host");
  }
  host(to).copy_(host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor &from, const at::Tensor &to) {
  if (from.sizes() != to.sizes())
    at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

const at::Tensor &resize(const at::Tensor &self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto *impl = self.unsafeGetTensorImpl();
  if (self.sizes() == size)
    return self;
  impl->set_sizes_contiguous(size);
  const auto bytes = static_cast<size_t>(impl->numel() + impl->storage_offset()) * self.itemsize();
  auto &storage = impl->unsafe_storage();
  if (storage.nbytes() < bytes) {
    auto grown = allocator.allocate(bytes);
    std::memcpy(grown.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(grown));
    storage.set_nbytes(bytes);
  }
  if (format && *format != at::MemoryFormat::Preserve)
    impl->empty_tensor_restride(*format);
  return self;
}

at::Scalar local_scalar(const at::Tensor &self) {
  wait_for_device("reading a number");
  return host(self).item();
}

bool equal(const at::Tensor &a, const at::Tensor &b) {
  wait_for_device("equal");
  TORCH_CHECK(a.device() == b.device(), "Expected all tensors to be on the same device, but found ", a.device(), " and ", b.device());
  return host(a).equal(host(b));
}

at::Tensor view(const at::Tensor &self, at::IntArrayRef size) { return at::cpu::view(self, size); }
at::Tensor reshape_alias(const at::Tensor &self, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::cpu::_reshape_alias(self, size, stride);
}
at::Tensor as_strided(const at::Tensor &self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> at_) {
  return at::cpu::as_strided(self, size, stride, at_);
}
at::Tensor unfold(const at::Tensor &self, int64_t dim, int64_t size, int64_t step) { return at::cpu::unfold(self, dim, size, step); }
at::Tensor &set_storage(at::Tensor &self, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::cpu::set_(self, storage, offset, size, stride);
}
at::Tensor &set_storage_whole(at::Tensor &self, at::Storage storage) {
  const auto n = static_cast<int64_t>(storage.nbytes() / self.itemsize());
  return at::cpu::set_(self, storage, 0, {n}, {1});
}

at::Tensor device(const at::Tensor &x) {
  if (!x.defined())
    return x;
  auto found = at::empty_like(x, x.options().device(kDevice));
  host(found).copy_(x);
  return found;
}

at::Tensor convolution(const at::Tensor &x, const at::Tensor &w, const std::optional<at::Tensor> &b, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
                       int64_t groups) {
  std::optional<at::Tensor> bias;
  if (b.has_value() && b->defined())
    bias = host(*b);
  return device(at::convolution(host(x), host(w), bias, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor &g, const at::Tensor &x, const at::Tensor &w, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  std::vector<int64_t> sizes{transposed ? w.size(1) * groups : w.size(0)};
  auto [a, b, c] = at::convolution_backward(host(g), host(x), host(w), at::OptionalIntArrayRef(sizes), stride, padding, dilation, transposed,
                                            output_padding, groups, mask);
  return {device(a), device(b), device(c)};
}

// Operations whose result has a size that depends on the numbers: a real device is waited for.
const std::set<std::string> sized{"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
                                  "aten::unique_consecutive", "aten::bincount", "aten::is_nonzero"};

void fallback(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  const auto &schema = op.schema();
  const auto count = schema.arguments().size();
  const std::string name = schema.name();
  auto arguments = torch::jit::last(stack, count);
  const bool mixes = name == "aten::copy_" || name == "aten::_to_copy" || name.rfind("aten::index", 0) == 0 ||
                     name == "aten::_index_put_impl_";
  for (size_t i = 0; i < count; i++) {
    const auto &value = arguments[i];
    auto check = [&](const at::Tensor &t) {
      if (!t.defined() || t.device().type() == kDevice || mixes)
        return;
      TORCH_CHECK(t.dim() == 0 && t.device().is_cpu(), "Expected all tensors to be on the same device, but ", name,
                  " found at least two devices: ", t.device(), " and the pretended one");
    };
    if (value.isTensor())
      check(value.toTensor());
    else if (value.isTensorList())
      for (const at::Tensor &t : value.toTensorVector())
        check(t);
    else if (value.isGenerator()) {
      auto g = value.toGenerator();
      TORCH_CHECK(g.device().type() == kDevice, "Expected a generator of this device but found ", g.device());
      (*stack)[stack->size() - count + i] = c10::IValue(static_cast<Generator *>(g.unsafeGetGeneratorImpl())->host);
    }
  }
  if (sized.count(name))
    wait_for_device(name.c_str());
  const bool before = inside;
  inside = true;
  try {
    at::native::cpu_fallback(op, stack);
  } catch (...) {
    inside = before;
    throw;
  }
  inside = before;
}

} // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("equal", equal);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("as_strided", as_strided);
  m.impl("unfold", unfold);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_.source_Storage", set_storage_whole);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  c10::SetAllocator(kDevice, &allocator);
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("waits", [] { return waits.load(); });
  m.def("refuse_waiting", [](bool on) { refuse = on; });
  m.def("refuse_float64", [](bool on) { single = on; });
}
