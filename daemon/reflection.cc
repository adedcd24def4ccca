#include "daemon/reflection.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include <set>

namespace kvd {
namespace {

namespace reflect = grpc::reflection::v1alpha;
using google::protobuf::DescriptorPool;
using google::protobuf::FileDescriptor;

void AddFile(const FileDescriptor& file, std::set<const FileDescriptor*>& added,
             reflect::FileDescriptorResponse& to) {
  if (!added.insert(&file).second) return;
  google::protobuf::FileDescriptorProto description;
  file.CopyTo(&description);
  to.add_file_descriptor_proto(description.SerializeAsString());
  for (int i = 0; i < file.dependency_count(); ++i) AddFile(*file.dependency(i), added, to);
}

void AnswerFile(const FileDescriptor* file, reflect::ServerReflectionResponse& response) {
  if (file == nullptr) {
    response.mutable_error_response()->set_error_code(grpc::StatusCode::NOT_FOUND);
    response.mutable_error_response()->set_error_message("no such file or symbol");
    return;
  }
  std::set<const FileDescriptor*> added;
  AddFile(*file, added, *response.mutable_file_descriptor_response());
}

void Answer(const std::vector<std::string>& services,
            const reflect::ServerReflectionRequest& request,
            reflect::ServerReflectionResponse& response) {
  using Request = reflect::ServerReflectionRequest;
  const DescriptorPool& pool = *DescriptorPool::generated_pool();
  response.Clear();
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  switch (request.message_request_case()) {
    case Request::kListServices:
      for (const std::string& name : services) {
        response.mutable_list_services_response()->add_service()->set_name(name);
      }
      return;
    case Request::kFileByFilename:
      return AnswerFile(pool.FindFileByName(request.file_by_filename()), response);
    case Request::kFileContainingSymbol:
      return AnswerFile(pool.FindFileContainingSymbol(request.file_containing_symbol()), response);
    default:
      response.mutable_error_response()->set_error_code(grpc::StatusCode::UNIMPLEMENTED);
      response.mutable_error_response()->set_error_message("kvd has no extensions");
  }
}

class Conversation final : public grpc::ServerBidiReactor<reflect::ServerReflectionRequest,
                                                          reflect::ServerReflectionResponse> {
 public:
  explicit Conversation(const std::vector<std::string>& services) : services_(services) {
    StartRead(&request_);
  }
  void OnReadDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status::OK);
      return;
    }
    Answer(services_, request_, response_);
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      StartRead(&request_);
    } else {
      Finish(grpc::Status::CANCELLED);
    }
  }
  void OnDone() override { delete this; }

 private:
  const std::vector<std::string>& services_;
  reflect::ServerReflectionRequest request_;
  reflect::ServerReflectionResponse response_;
};

}  // namespace

grpc::ServerBidiReactor<reflect::ServerReflectionRequest, reflect::ServerReflectionResponse>*
Reflection::ServerReflectionInfo(grpc::CallbackServerContext*) {
  return new Conversation(services_);
}

}  // namespace kvd
