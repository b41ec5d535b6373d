// Runs model.torchscript.pt on the golden inputs of an export folder and compares with the golden output.
//
//   golden EXPORT_FOLDER [TOLERANCE]
//
// The folder has no golden.pt where it was exported with export.golden=0.
// Prints the largest difference. Exit code 0: within the tolerance (1e-4), 1: not, 2: a file cannot be used.

#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// The tensors of golden.pt by name: `input.<name>` each, in the order in which the model takes them, and `output`.
std::vector<std::pair<std::string, at::Tensor>> read_golden(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error("cannot open " + path);
  }
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& entry : torch::jit::pickle_load(bytes).toGenericDict()) {
    tensors.emplace_back(entry.key().toStringRef(), entry.value().toTensor());
  }
  return tensors;
}

// Infinite where the shapes differ or either holds what is no number.
double largest_difference(const at::Tensor& found, const at::Tensor& expected) {
  if (found.sizes() != expected.sizes()) {
    return std::numeric_limits<double>::infinity();
  }
  const auto apart = (found.to(at::kDouble) - expected.to(at::kDouble)).abs();
  return apart.nan_to_num(std::numeric_limits<double>::infinity()).max().item<double>();
}

int compare(const std::string& folder, double tolerance) {
  const c10::InferenceMode inference;
  torch::jit::Module model = torch::jit::load(folder + "/model.torchscript.pt", at::kCPU);
  model.eval();
  std::vector<c10::IValue> inputs;
  at::Tensor expected;
  for (const auto& [name, tensor] : read_golden(folder + "/golden.pt")) {
    if (name == "output") {
      expected = tensor;
      continue;
    }
    std::cout << name << " " << tensor.sizes() << "\n";
    inputs.emplace_back(tensor);
  }
  const at::Tensor output = model.forward(inputs).toTensor();
  const double difference = largest_difference(output, expected);
  const bool equal = difference <= tolerance;
  std::cout << "output " << output.sizes() << "\n"
            << (equal ? "ok" : "FAILED") << ": largest difference " << difference << ", tolerance " << tolerance << "\n";
  return equal ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || count > 3) {
    std::cerr << "usage: golden EXPORT_FOLDER [TOLERANCE]\n";
    return 2;
  }
  try {
    return compare(arguments[1], count == 3 ? std::stod(arguments[2]) : 1e-4);
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
