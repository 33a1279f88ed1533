// Numbers and floats as bytes, and back from bytes that may come from anywhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace encodec {

class Writer {
 public:
  explicit Writer(std::vector<char>& bytes) : bytes_(bytes) {}
  void operator()(const int64_t& value) { append(&value, sizeof value); }
  void operator()(const bool& value) { (*this)(static_cast<int64_t>(value)); }
  template <class Value>
  void operator()(const std::vector<Value>& values) {
    (*this)(static_cast<int64_t>(values.size()));
    append(values.data(), values.size() * sizeof(Value));
  }

 private:
  void append(const void* data, size_t size) {
    const char* from = static_cast<const char*>(data);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  std::vector<char>& bytes_;
};

class Reader {
 public:
  Reader(const char* bytes, int64_t size) : bytes_(bytes), left_(size) {}
  void operator()(int64_t& value) { take(&value, 1, sizeof value); }
  void operator()(bool& value) {
    int64_t wide = 0;
    (*this)(wide);
    require(wide == 0 || wide == 1);
    value = wide == 1;
  }
  template <class Value>
  void operator()(std::vector<Value>& values) {
    int64_t count = 0;
    (*this)(count);
    require(count >= 0 && count <= left_ / static_cast<int64_t>(sizeof(Value)));
    values.resize(count);
    take(values.data(), count, sizeof(Value));
  }
  void end() const { require(left_ == 0); }
  static void require(bool holds) {
    if (!holds) throw std::invalid_argument("these bytes are not a state that such a program or model comes to");
  }

 private:
  void take(void* data, int64_t count, int64_t size) {
    require(count * size <= left_);
    if (count > 0) std::memcpy(data, bytes_, count * size);
    bytes_ += count * size;
    left_ -= count * size;
  }
  const char* bytes_;
  int64_t left_;
};

}  // namespace encodec
