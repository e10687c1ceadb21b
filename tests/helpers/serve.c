/* Loads a SavedModel as TF Serving does, without Python, and runs requests from a file:
   serve EXPORT INPUT OUTPUT,OUTPUT... REQUESTS ROUNDS THREADS

   INPUT and OUTPUT are operation names with an index, OP:0. A request in the file: dtype and rank (32
   bits each), the sizes (64 bits each), then the values; before each string its length (64 bits). Each
   of THREADS threads runs all requests ROUNDS times. The first thread prints the results of its first
   round, one line for the status and one for each output, and after each tenth of its rounds the
   current and the peak memory of the process. */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

enum { MAX_COUNT = 64 };

static TF_Session *session;
static TF_Output input, outputs[MAX_COUNT];
static char *output_names[MAX_COUNT];
static TF_Tensor *requests[MAX_COUNT];
static int num_outputs, num_requests, rounds;

static void fail(const char *subject, const char *error) {
  fprintf(stderr, "%s: %s\n", subject, error);
  exit(1);
}

static TF_Output find_output(TF_Graph *graph, char *name) {
  char *colon = strrchr(name, ':');
  if (!colon) fail(name, "has no index");
  *colon = 0;
  TF_Output out = {TF_GraphOperationByName(graph, name), atoi(colon + 1)};
  if (!out.oper) fail(name, "no such operation");
  *colon = ':';
  return out;
}

static void read_exactly(void *to, size_t size, FILE *file) {
  if (fread(to, 1, size, file) != size) fail("requests", "truncated");
}

static TF_Tensor *read_request(FILE *file, int32_t type) {
  int32_t rank;
  int64_t sizes[8], count = 1;
  read_exactly(&rank, sizeof rank, file);
  read_exactly(sizes, rank * sizeof *sizes, file);
  for (int i = 0; i < rank; i++) count *= sizes[i];
  size_t width = type == TF_STRING ? sizeof(TF_TString) : TF_DataTypeSize(type);
  TF_Tensor *tensor = TF_AllocateTensor(type, sizes, rank, count * width);
  if (type != TF_STRING) {
    read_exactly(TF_TensorData(tensor), count * width, file);
    return tensor;
  }
  TF_TString *strings = TF_TensorData(tensor);
  for (int64_t i = 0; i < count; i++) {
    uint64_t length;
    read_exactly(&length, sizeof length, file);
    char *bytes = malloc(length + 1);
    read_exactly(bytes, length, file);
    TF_StringInit(&strings[i]);
    TF_StringCopy(&strings[i], bytes, length);
    free(bytes);
  }
  return tensor;
}

static void print_tensor(const char *name, TF_Tensor *tensor) {
  TF_DataType type = TF_TensorType(tensor);
  void *data = TF_TensorData(tensor);
  printf("%s %d [", name, type);
  for (int i = 0; i < TF_NumDims(tensor); i++) printf("%s%lld", i ? "," : "", (long long)TF_Dim(tensor, i));
  printf("]");
  for (int64_t i = 0; i < TF_TensorElementCount(tensor); i++) {
    if (type == TF_STRING) {
      TF_TString *string = (TF_TString *)data + i;
      printf("\t%.*s", (int)TF_StringGetSize(string), TF_StringGetDataPointer(string));
    } else if (type == TF_FLOAT) {
      printf("\t%.9g", ((float *)data)[i]);
    } else if (type == TF_INT32) {
      printf("\t%d", ((int32_t *)data)[i]);
    } else if (type == TF_BOOL) {
      printf("\t%d", ((unsigned char *)data)[i]);
    } else {
      fail(name, "unsupported dtype");
    }
  }
  printf("\n");
}

static void run_request(int number, int print) {
  TF_Status *status = TF_NewStatus();
  TF_Tensor *results[MAX_COUNT] = {0};
  TF_SessionRun(session, NULL, &input, &requests[number], 1, outputs, results, num_outputs, NULL, 0,
                NULL, status);
  if (print) {
    printf("request %d %d %s\n", number, TF_GetCode(status), TF_Message(status));
    for (int i = 0; i < num_outputs && results[i]; i++) print_tensor(output_names[i], results[i]);
    fflush(stdout);
  }
  for (int i = 0; i < num_outputs; i++)
    if (results[i]) TF_DeleteTensor(results[i]);
  TF_DeleteStatus(status);
}

static void print_memory(int round) {
  FILE *file = fopen("/proc/self/status", "r");
  char line[256];
  long current = 0, peak = 0;
  while (fgets(line, sizeof line, file)) {
    sscanf(line, "VmRSS: %ld", &current);
    sscanf(line, "VmHWM: %ld", &peak);
  }
  fclose(file);
  printf("memory %d %ld %ld\n", round, current, peak);
  fflush(stdout);
}

static void *run_rounds(void *is_first) {
  for (int round = 0; round < rounds; round++) {
    for (int i = 0; i < num_requests; i++) run_request(i, is_first && !round);
    if (is_first && ((round + 1) * 10 / rounds != round * 10 / rounds)) print_memory(round + 1);
  }
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 7) fail("serve", "expected 6 arguments");
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tags[] = {"serve"};
  session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  if (TF_GetCode(status) != TF_OK) fail("load", TF_Message(status));
  input = find_output(graph, argv[2]);
  for (char *name = strtok(argv[3], ","); name && num_outputs < MAX_COUNT; name = strtok(NULL, ","))
    output_names[num_outputs++] = name;
  for (int i = 0; i < num_outputs; i++) outputs[i] = find_output(graph, output_names[i]);

  FILE *file = fopen(argv[4], "rb");
  if (!file) fail(argv[4], "cannot be opened");
  int32_t type;
  while (num_requests < MAX_COUNT && fread(&type, sizeof type, 1, file) == 1)
    requests[num_requests++] = read_request(file, type);
  fclose(file);

  rounds = atoi(argv[5]);
  int num_threads = atoi(argv[6]);
  pthread_t threads[MAX_COUNT];
  for (int i = 1; i < num_threads && i < MAX_COUNT; i++)
    pthread_create(&threads[i], NULL, run_rounds, NULL);
  run_rounds(session);
  for (int i = 1; i < num_threads && i < MAX_COUNT; i++) pthread_join(threads[i], NULL);

  for (int i = 0; i < num_requests; i++) TF_DeleteTensor(requests[i]);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteGraph(graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(status);
  return 0;
}
