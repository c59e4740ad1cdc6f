// Runs SignNet on photos from a file, without Python and without any library but ncnn, which is linked in.
//
//   run_ncnn MODEL.param MODEL.bin INPUT.f32 OUTPUT.f32
//
// INPUT holds photos of 3x64x64 float32 numbers in the order of memory (NCHW), OUTPUT gets the numbers of the answers,
// one photo after the other. Prints one line: the shape of the answers and, for each, the place of its largest number.

#include <net.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kChannels = 3, kHeight = 64, kWidth = 64;
constexpr std::size_t kPixels = kHeight * kWidth, kPhoto = kChannels * kPixels;

std::vector<float> read_photos(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const auto bytes = file ? static_cast<std::size_t>(file.tellg()) : 0;
  std::vector<float> numbers(bytes / sizeof(float));
  file.seekg(0).read(reinterpret_cast<char*>(numbers.data()), bytes);
  if (!file || bytes == 0 || bytes % (kPhoto * sizeof(float)) != 0) {
    throw std::runtime_error(path + " does not hold photos of 3x64x64 float32 numbers");
  }
  return numbers;
}

void write_floats(const std::string& path, const std::vector<float>& numbers) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(float));
  file.close();
  if (!file) {
    throw std::runtime_error("cannot write " + path);
  }
}

// ncnn reports errors as return codes, never as exceptions.
void require(int code, const std::string& what) {
  if (code != 0) {
    throw std::runtime_error("cannot " + what);
  }
}

void load(ncnn::Net& net, const std::string& param, const std::string& bin) {
  net.opt.num_threads = 1;
  net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = false;
  require(net.load_param(param.c_str()), "read the network " + param);
  require(net.load_model(bin.c_str()), "read the weights " + bin);
}

std::vector<float> infer(const ncnn::Net& net, const float* photo) {
  ncnn::Mat input(kWidth, kHeight, kChannels);
  for (int c = 0; c < kChannels; ++c) {  // a Mat may leave a gap after each channel
    std::copy_n(photo + c * kPixels, kPixels, static_cast<float*>(input.channel(c)));
  }
  ncnn::Extractor extractor = net.create_extractor();  // it remembers its results: a new one for each photo
  require(extractor.input("in0", input), "feed in0");
  ncnn::Mat output;
  require(extractor.extract("out0", output), "compute out0");
  const float* numbers = output;
  return {numbers, numbers + output.w};
}

void run(const std::vector<std::string>& words) {
  const auto photos = read_photos(words[2]);
  ncnn::Net net;
  load(net, words[0], words[1]);

  std::vector<float> answers;
  std::string places;
  for (auto photo = photos.data(); photo != photos.data() + photos.size(); photo += kPhoto) {
    const auto answer = infer(net, photo);
    places += ' ' + std::to_string(std::max_element(answer.begin(), answer.end()) - answer.begin());
    answers.insert(answers.end(), answer.begin(), answer.end());
  }
  write_floats(words[3], answers);
  const auto count = photos.size() / kPhoto;
  std::printf("ncnn: [%zu, %zu], largest at%s\n", count, answers.size() / count, places.c_str());
}

}  // namespace

int main(int count, char** words) {
  if (count != 5) {
    std::fprintf(stderr, "usage: run_ncnn MODEL.param MODEL.bin INPUT.f32 OUTPUT.f32\n");
    return 2;
  }
  try {
    run({words + 1, words + count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_ncnn: %s\n", error.what());
    return 1;
  }
  return 0;
}
