// Runs a TorchScript file on a tensor from a file, without Python.
//
//   run_torchscript MODEL.pt INPUT.f32 OUTPUT.f32 N C H W
//
// INPUT holds N*C*H*W float32 numbers in the order of memory (NCHW), OUTPUT gets those of the answer.
// Prints one line: the shape of the answer and, for each row, the place of its largest number.

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::vector<float> read_floats(const std::string& path, std::int64_t count) {
  std::vector<float> numbers(count);
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(numbers.data()), count * sizeof(float));
  if (!file || file.peek() != std::ifstream::traits_type::eof()) {
    throw std::runtime_error(path + " does not hold " + std::to_string(count) + " float32 numbers");
  }
  return numbers;
}

void write_floats(const std::string& path, const at::Tensor& tensor) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  file.close();
  if (!file) {
    throw std::runtime_error("cannot write " + path);
  }
}

void run(const std::vector<std::string>& words) {
  std::vector<std::int64_t> shape;
  std::int64_t count = 1;
  for (std::size_t i = 3; i < words.size(); ++i) {
    shape.push_back(std::stoll(words[i]));
    count *= shape.back();
  }
  at::set_num_threads(1);
  const c10::InferenceMode no_autograd;

  auto numbers = read_floats(words[1], count);
  const auto input = at::from_blob(numbers.data(), shape, at::kFloat);  // a view: `numbers` must live on
  auto model = torch::jit::load(words[0]);
  const auto output = model.forward({input}).toTensor().contiguous();
  write_floats(words[2], output);

  std::cout << "libtorch: " << output.sizes() << ", largest at";
  const auto best = output.argmax(1);
  for (std::int64_t row = 0; row < output.size(0); ++row) {
    std::cout << ' ' << best[row].item<std::int64_t>();
  }
  std::cout << '\n';
}

}  // namespace

int main(int count, char** words) {
  if (count != 8) {
    std::cerr << "usage: run_torchscript MODEL.pt INPUT.f32 OUTPUT.f32 N C H W\n";
    return 2;
  }
  try {
    run({words + 1, words + count});
  } catch (const std::exception& error) {
    std::cerr << "run_torchscript: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
